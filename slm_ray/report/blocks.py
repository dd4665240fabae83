"""The pieces that a report is made of. Each writes itself as HTML and as Markdown; what is in it is decided once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm_ray.report.html import code, escape, html_table
from slm_ray.report.markdown import code_block, markdown_table, plain
from slm_ray.report.tables import Table


class Block:
    """A piece that says nothing; the others say what they say in one or both of the two ways."""

    def html(self, heading: int) -> str:
        """As HTML; ``heading`` is the level of a heading inside the section."""
        return ""

    def markdown(self, heading: int) -> str:
        """As Markdown; ``heading`` is the level of a heading inside the section."""
        return ""

    def figures(self) -> Mapping[str, Any]:
        """What the page's script draws, by key."""
        return {}


@dataclass(frozen=True)
class Words(Block):
    """A paragraph of plain text; ``small`` for a remark."""

    text: str
    small: bool = False

    def html(self, heading: int) -> str:
        """A paragraph."""
        return f'<p class="small">{escape(self.text)}</p>' if self.small else f"<p>{escape(self.text)}</p>"

    def markdown(self, heading: int) -> str:
        """A paragraph."""
        return plain(self.text)


@dataclass(frozen=True)
class Markup(Block):
    """HTML made of escaped parts, for the page alone."""

    text: str

    def html(self, heading: int) -> str:
        """As it is."""
        return self.text


@dataclass(frozen=True)
class Rows(Block):
    """A table.

    Attributes:
        table: What is in it.
        marked: Rows to set off.
        strong: ``(row, column)`` of cells in bold.
        titled: Its title is a heading of its own (otherwise the section's says it).
    """

    table: Table
    marked: Sequence[int] = ()
    strong: frozenset[tuple[int, int]] = frozenset()
    titled: bool = False

    def html(self, heading: int) -> str:
        """The table in a frame that scrolls; nothing where it has no rows."""
        if not self.table.rows:
            return ""
        title = f"<h{heading}>{escape(self.table.title)}</h{heading}>" if self.titled else ""
        return title + html_table(self.table, marked=self.marked, strong=self.strong)

    def markdown(self, heading: int) -> str:
        """The table; nothing where it has no rows."""
        if not self.table.rows:
            return ""
        title = f"{'#' * heading} {plain(self.table.title)}\n\n" if self.titled else ""
        return title + markdown_table(self.table, self.strong)


@dataclass(frozen=True)
class Drawing(Block):
    """A picture that the page's script draws; Markdown has a :class:`Picture` in its place.

    Attributes:
        key: Its name on the page.
        kind: Which function of the script draws it.
        data: What it draws, JSON-like.
    """

    key: str
    kind: str
    data: Any

    def html(self, heading: int) -> str:
        """The place that the script fills."""
        return f'<div class="drawing" data-figure="{escape(self.key)}" data-kind="{escape(self.kind)}"></div>'

    def figures(self) -> Mapping[str, Any]:
        """Its data."""
        return {self.key: self.data}


@dataclass(frozen=True)
class Picture(Block):
    """A picture file beside the report, shown in Markdown; the page draws its own. No file says nothing."""

    file: str
    alt: str

    def markdown(self, heading: int) -> str:
        """The picture."""
        return "" if not self.file else f"![{plain(self.alt)}]({self.file})"


@dataclass(frozen=True)
class CodeText(Block):
    """Code to copy, with what it does."""

    text: str
    language: str = ""
    title: str = ""

    def html(self, heading: int) -> str:
        """A block with a button that copies it."""
        title = f"<h{heading}>{escape(self.title)}</h{heading}>" if self.title else ""
        return title + code(self.text)

    def markdown(self, heading: int) -> str:
        """A fenced block."""
        title = f"{'#' * heading} {plain(self.title)}\n\n" if self.title else ""
        return title + code_block(self.text, self.language)


@dataclass(frozen=True)
class Links(Block):
    """A list of links to files beside the report."""

    addresses: Mapping[str, str]

    def html(self, heading: int) -> str:
        """A list; nothing where it is empty."""
        items = (f'<li><a href="{escape(at)}">{escape(text)}</a></li>' for text, at in self.addresses.items())
        return f"<ul>{''.join(items)}</ul>" if self.addresses else ""

    def markdown(self, heading: int) -> str:
        """A list."""
        return "\n".join(f"- [{plain(text)}]({address})" for text, address in self.addresses.items())


@dataclass(frozen=True)
class Fold(Block):
    """Pieces that are folded away until the reader asks for them; Markdown shows them under a heading."""

    title: str
    blocks: Sequence[Block]

    def html(self, heading: int) -> str:
        """Details, closed; nothing where they are empty."""
        inner = "".join(block.html(heading + 1) for block in self.blocks)
        return f"<details><summary>{escape(self.title)}</summary>{inner}</details>" if inner else ""

    def markdown(self, heading: int) -> str:
        """The pieces under a heading; nothing where they are empty."""
        inner = [text for block in self.blocks if (text := block.markdown(heading + 1))]
        return "\n\n".join([f"{'#' * heading} {plain(self.title)}", *inner]) if inner else ""

    def figures(self) -> Mapping[str, Any]:
        """Those of its pieces."""
        return {key: value for block in self.blocks for key, value in block.figures().items()}


@dataclass(frozen=True)
class Section:
    """A titled part of a report; one whose pieces say nothing is left out."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""


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
        tiles: Its most important figures, as HTML.
        folded: Closed until the reader opens it.
    """

    sections: Sequence[Section]
    title: str = ""
    anchor: str = ""
    facts: str = ""
    headline: str = ""
    notes: Sequence[str] = ()
    tiles: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: Of the page.
        kind: ``search report``, ``training report``, …
        chapters: One without a title where the report is of one run; else what all runs share, then each of them.
        picture: The file beside the page that shows what its pictures show, for readers without scripts.
    """

    title: str
    kind: str
    chapters: Sequence[Chapter]
    picture: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
