"""Small pieces of HTML. Every text that comes from a run goes through :func:`escape`."""

from __future__ import annotations

import html
from collections.abc import Sequence

from slm_ray.report.tables import Table
from slm_ray.report.wording import MISSING

# Digits, units, and the "of" of "26 of 30": such columns are set right and never broken.
_NUMERIC = set("0123456789.,%×±KMGT– of")


def escape(text: object) -> str:
    """Text that HTML shows as it is, in content and in quoted attributes."""
    return html.escape(str(text), quote=True)


def _is_numeric_column(rows: Sequence[Sequence[str]], column: int) -> bool:
    return any(row[column] != MISSING for row in rows) and all(set(row[column]) <= _NUMERIC for row in rows)


def html_table(table: Table, *, caption: str | None = None, marked: Sequence[int] = ()) -> str:
    """A table with a caption, in a frame that scrolls sideways where the screen is narrow.

    Args:
        table: What is in it.
        caption: What it is called; its title by default.
        marked: The rows to set off.
    """
    numeric = [_is_numeric_column(table.rows, column) for column in range(len(table.header))]
    kind = ['class="n"' if is_numeric else "" for is_numeric in numeric]
    heads = "".join(f'<th scope="col" {k}>{escape(cell)}</th>' for cell, k in zip(table.header, kind, strict=True))
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(f"<td {k}>{escape(cell)}</td>" for cell, k in zip(row, kind, strict=True))
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


def section(title: str, body: str, *, lead: str = "") -> str:
    """A titled part of the page, or nothing where it would be empty."""
    if not body:
        return ""
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{body}</section>"
