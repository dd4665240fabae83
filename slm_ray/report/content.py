"""What a report says, without how it looks: tables, texts, pictures, sections; templates write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from slm_ray.report.text import MISSING

if TYPE_CHECKING:
    from slm_ray.report.charts import Picture  # takes Altair, which loads slowly


@dataclass(frozen=True)
class Table:
    """A titled table of texts."""

    kind: ClassVar[str] = "table"
    title: str  # What it is called
    header: tuple[str, ...]  # Names of its columns
    rows: tuple[tuple[str, ...], ...]  # Its cells
    marked: tuple[int, ...] = ()  # Rows to set off
    strong: frozenset[tuple[int, int]] = frozenset()  # ``(row, column)`` of cells in bold
    titled: bool = False  # Its title is a heading of its own (otherwise the section's says it)

    def __bool__(self) -> bool:
        """Whether it has rows."""
        return bool(self.rows)

    def compact(self) -> Table:
        """Without the columns that say nothing in any row."""
        kept = [i for i in range(len(self.header)) if not self.rows or any(row[i] != MISSING for row in self.rows)]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, header=tuple(self.header[i] for i in kept), rows=rows)


def facts_table(title: str, facts: Sequence[tuple[str, object]]) -> Table:
    """A table of what is known; the rest is left out."""
    kept = tuple((name, str(value)) for name, value in facts if value not in (None, ""))
    return Table(title, ("what", "which"), kept)


@dataclass(frozen=True)
class Text:
    """A paragraph; ``small`` for a remark."""

    kind: ClassVar[str] = "text"
    text: str
    small: bool = False

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return bool(self.text)


@dataclass(frozen=True)
class Figure:
    """A picture: drawn by the page's script, and in Markdown a file beside it (none: nothing)."""

    kind: ClassVar[str] = "figure"
    key: str  # Its name on the page
    picture: Picture  # What is drawn
    file: str = ""  # The PNG that Markdown shows
    alt: str = ""  # What it shows, for those who do not see it


@dataclass(frozen=True)
class Code:
    """Code to copy, under a title."""

    kind: ClassVar[str] = "code"
    text: str
    language: str = ""
    title: str = ""


@dataclass(frozen=True)
class Links:
    """Links to files beside the report, by text."""

    kind: ClassVar[str] = "links"
    addresses: Mapping[str, str]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.addresses)


@dataclass(frozen=True)
class Samples:
    """Texts side by side: a prompt, and who wrote what after it."""

    kind: ClassVar[str] = "samples"
    prompts: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Fold:
    """Blocks that are folded away until the reader opens them."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence[Block]

    def __bool__(self) -> bool:
        """Whether there is anything inside."""
        return any(self.blocks)


Block = Table | Text | Figure | Code | Links | Samples | Fold


@dataclass(frozen=True)
class Section:
    """A titled part of a report; one without blocks that say something is left out."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def shown(self) -> list[Block]:
        """Its blocks that say something."""
        return [block for block in self.blocks if block]


@dataclass(frozen=True)
class Tile:
    """One of a run's most important figures, with what it is and what to hold it against."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Chapter:
    """One run's part of a report."""

    sections: Sequence[Section]  # In order
    title: str = ""  # Of a run among several; empty where the report is of one run
    anchor: str = ""  # Its address on the page
    facts: str = ""  # What the run was, in one line
    headline: str = ""  # Its result in a sentence or two
    notes: Sequence[str] = ()  # What is missing or damaged
    tiles: Sequence[Tile] = ()  # Its most important figures
    folded: bool = False  # Closed until the reader opens it


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str  # Of the page
    kind: str  # ``search report``, ``training report``, …
    # One without a title where the report is of one run; else what all runs share, then each of them
    chapters: Sequence[Chapter]
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # Name to content of the PNG files beside it

    @property
    def figures(self) -> list[Figure]:
        """Every figure on its page."""
        return [found for chapter in self.chapters for part in chapter.sections for found in _figures(part.blocks)]


def _figures(blocks: Sequence[Block]) -> list[Figure]:
    found: list[Figure] = []
    for block in blocks:
        if isinstance(block, Figure) and block.picture.views:
            found.append(block)
        elif isinstance(block, Fold):
            found += _figures(block.blocks)
    return found
