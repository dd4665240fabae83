"""Small pieces of HTML. Every text that comes from a run goes through :func:`escape`."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from slm_ray.report.tables import Table
from slm_ray.report.wording import MISSING

# Figures with their units, errors and ranges: columns of such cells are set right and never broken.
_FIGURE = r"[+−-]?[\d.,]+(?:e[+-]?\d+)?[%×KMGTPE]?"
_NUMERIC = re.compile(rf"{_FIGURE}(?:(?: of | to | ± |–){_FIGURE})*(?: ≈)?(?: (?:B|[KMGT]iB|m?s|kWh|mJ|J))?")


# Names up to this length are not broken, at a hyphen or anywhere; sentences get some width on a narrow screen.
_SHORT, _LONG = 22, 60


def escape(text: object) -> str:
    """Text that HTML shows as it is, in content and in quoted attributes."""
    return html.escape(str(text), quote=True)


def _is_numeric_column(rows: Sequence[Sequence[str]], column: int) -> bool:
    cells = {row[column] for row in rows} - {MISSING}
    return bool(cells) and all(_NUMERIC.fullmatch(cell) for cell in cells)


def _column_class(rows: Sequence[Sequence[str]], column: int) -> str:
    """Figures, names that are kept whole, sentences, or none of these."""
    if _is_numeric_column(rows, column):
        return "n"
    cells = [row[column] for row in rows]
    longest = max(map(len, cells), default=0)
    if longest <= _SHORT and not any("(" in cell for cell in cells):
        return "k"
    return "w" if longest > _LONG else ""


def html_table(
    table: Table, *, caption: str | None = None, marked: Sequence[int] = (),
    strong: frozenset[tuple[int, int]] = frozenset(),
) -> str:  # fmt: skip
    """A table with a caption, in a frame that scrolls sideways where the screen is narrow.

    Args:
        table: What is in it.
        caption: What it is called; its title by default.
        marked: The rows to set off.
        strong: ``(row, column)`` of cells in bold.
    """
    columns = range(len(table.header))
    kind = [f'class="{name}"' if (name := _column_class(table.rows, column)) else "" for column in columns]
    heads = "".join(f'<th scope="col" {k}>{escape(cell)}</th>' for cell, k in zip(table.header, kind, strict=True))
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(
            f"<td {k}>{f'<b>{escape(cell)}</b>' if (index, column) in strong else escape(cell)}</td>"
            for column, (cell, k) in enumerate(zip(row, kind, strict=True))
        )
        rows.append(f'<tr class="marked">{cells}</tr>' if index in marked else f"<tr>{cells}</tr>")
    label = escape(caption or table.title)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def tile(label: str, value: str, note: str) -> str:
    """One figure of the headline, with what it is and what to hold it against."""
    return f'<div class="tile"><dt>{escape(label)}</dt><dd><b>{escape(value)}</b><span>{escape(note)}</span></dd></div>'


def code(text: str) -> str:
    """A block of code with a button that copies it."""
    button = '<button type="button" class="copy">Copy</button>'
    return f'<div class="code">{button}<pre tabindex="0"><code>{escape(text)}</code></pre></div>'
