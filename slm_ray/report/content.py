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
    """A titled table of texts.

    Attributes:
        title: What it is called.
        header: Names of its columns.
        rows: Its cells.
        marked: Rows to set off.
        strong: ``(row, column)`` of cells in bold.
        titled: Its title is a heading of its own (otherwise the section's says it).
    """

    kind: ClassVar[str] = "table"
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: tuple[int, ...] = ()
    strong: frozenset[tuple[int, int]] = frozenset()
    titled: bool = False

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
    """A picture: drawn by the page's script, and in Markdown a file beside it (none: nothing).

    Attributes:
        key: Its name on the page.
        picture: What is drawn.
        file: The PNG that Markdown shows.
        alt: What it shows, for those who do not see it.
    """

    kind: ClassVar[str] = "figure"
    key: str
    picture: Picture
    file: str = ""
    alt: str = ""


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
    """One run's part of a report.

    Attributes:
        sections: In order.
        title: Of a run among several; empty where the report is of one run.
        anchor: Its address on the page.
        facts: What the run was, in one line.
        headline: Its result in a sentence or two.
        notes: What is missing or damaged.
        tiles: Its most important figures.
        folded: Closed until the reader opens it.
    """

    sections: Sequence[Section]
    title: str = ""
    anchor: str = ""
    facts: str = ""
    headline: str = ""
    notes: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: Of the page.
        kind: ``search report``, ``training report``, …
        chapters: One without a title where the report is of one run; else what all runs share, then each of them.
        pictures: Name to content of the PNG files beside it.
    """

    title: str
    kind: str
    chapters: Sequence[Chapter]
    pictures: Mapping[str, bytes] = field(default_factory=dict)

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
