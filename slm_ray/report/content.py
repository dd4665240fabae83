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
    """A titled table of texts; without rows it is left out."""

    kind: ClassVar[str] = "table"
    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    marked: tuple[int, ...] = ()  # rows to set off
    strong: frozenset[tuple[int, int]] = frozenset()  # (row, column) of cells in bold
    titled: bool = False  # its title is a heading of its own (otherwise the section's says it)

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
    """A picture: drawn by the page's script, and as a PNG beside Markdown where it has a ``file``."""

    kind: ClassVar[str] = "figure"
    key: str  # its name on the page
    picture: Picture | None
    alt: str  # what it shows, for those who do not see it
    file: str = ""
    title: str = ""  # above the PNG
    columns: int = 1  # of the PNG's views
    link: str = ""  # figures of one link share the selected model
    on_page: bool = True

    def __bool__(self) -> bool:
        """Whether there is anything to draw."""
        return self.picture is not None


@dataclass(frozen=True)
class Code:
    """Code to copy, under a title."""

    kind: ClassVar[str] = "code"
    text: str
    language: str = ""
    title: str = ""


@dataclass(frozen=True)
class Samples:
    """Texts side by side: a prompt, and who wrote what after it."""

    kind: ClassVar[str] = "samples"
    prompts: Sequence[tuple[str, Sequence[tuple[str, str]]]]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.prompts)


@dataclass(frozen=True)
class Fold:
    """A block that is folded away until the reader opens it."""

    kind: ClassVar[str] = "fold"
    title: str
    block: Table | Text | Code | Samples

    def __bool__(self) -> bool:
        """Whether there is anything inside."""
        return bool(self.block)


Block = Table | Text | Figure | Code | Samples | Fold


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

    sections: Sequence[Section]
    title: str = ""  # of a run among several; empty where the report is of one run
    anchor: str = ""  # its address on the page
    facts: str = ""  # what the run was, in one line
    headline: str = ""  # its result in a sentence or two
    notes: Sequence[str] = ()  # what is missing or damaged
    tiles: Sequence[Tile] = ()
    folded: bool = False  # closed until the reader opens it

    def prefixed(self, prefix: str, *, files: bool) -> Chapter:
        """The same with other names for its figures and (if wanted) their files, for a page of several runs."""

        def renamed(block: Block) -> Block:
            if not isinstance(block, Figure):
                return block
            file = f"{prefix}{block.file}" if files and block.file else ""
            return replace(block, key=prefix + block.key, link=block.link and prefix + block.link, file=file)

        sections = [replace(part, blocks=[renamed(block) for block in part.blocks]) for part in self.sections]
        return replace(self, sections=sections)


@dataclass(frozen=True)
class Report:
    """A whole report: one chapter without a title where it is of one run; else what all runs share, then each."""

    title: str
    kind: str  # ``search report``, ``training report``, …
    chapters: Sequence[Chapter]
    files: Mapping[str, str] = field(default_factory=dict)  # texts that are written beside it, by name

    @property
    def figures(self) -> list[Figure]:
        """Every figure that there is something to draw of."""
        blocks = [block for chapter in self.chapters for part in chapter.sections for block in part.shown]
        return [block for block in blocks if isinstance(block, Figure)]
