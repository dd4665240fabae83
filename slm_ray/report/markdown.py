"""Small pieces of Markdown. Text that comes from a run goes through :func:`plain`."""

from __future__ import annotations

import re

from slm_ray.report.tables import Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code_block(code: str, language: str = "") -> str:
    """A fenced block whose fence is longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def markdown_table(table: Table, strong: frozenset[tuple[int, int]] = frozenset()) -> str:
    """A table in GitHub's Markdown; ``strong`` are the ``(row, column)`` of cells in bold."""

    def cell(row: int, column: int, text: str) -> str:
        return f"**{plain(text)}**" if (row, column) in strong else plain(text)

    lines = [" | ".join(map(plain, table.header)), " | ".join("---" for _ in table.header)]
    for number, row in enumerate(table.rows):
        lines.append(" | ".join(cell(number, column, text) for column, text in enumerate(row)))
    return "\n".join(f"| {line} |" for line in lines)
