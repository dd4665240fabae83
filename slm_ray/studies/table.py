"""Tables as CSV, Parquet, Markdown and text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.columns import aligned
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.records.files import explain_os_error, write_bytes, write_text
from slm_ray.studies.rows import Row, columns_of

FORMATS = ("csv", "parquet")
# Left out of the tables for people, which the CSV has.
_NOT_SHOWN = ("sweep", "task", "loss_stderr", "capture_flops", "own_flops", "teacher_flops", "cpu_percent", "start",
              "first_loss", "best_loss", "search_flops", "front", "forward_flops")  # fmt: skip
_ALWAYS = ("point", "status")
_LONGEST_CELL = 40


def as_csv(rows: Sequence[Row]) -> str:
    """A line per row; what is unknown is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_parquet(rows: Sequence[Row]) -> bytes:
    """The same as Parquet; a column of several types is text."""
    import pyarrow
    import pyarrow.parquet

    columns = {}
    for name in columns_of(rows):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float}:
            columns[name] = [value if value is None or kinds == {int} else float(value) for value in values]
        elif len(kinds) > 1:
            columns[name] = [None if value is None else str(value) for value in values]
        else:
            columns[name] = values
    place = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), place)
    return place.getvalue()


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """The columns for people: those that differ between rows, without the long ones."""
    found = []
    for name in columns_of(rows):
        values = [row.get(name) for row in rows]
        says_something = any(value is not None for value in values)
        differs = len(rows) == 1 or any(value != values[0] for value in values)
        if name in _ALWAYS or (name.rpartition(".")[2] not in _NOT_SHOWN and says_something and differs):
            found.append(name)
    return found


def cell(value: Any) -> str:
    """A value for people: four significant figures, large counts with a suffix."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if abs(value) < 100_000 else format_count(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:.4g}" if abs(value) < 100_000 else format_count(value)
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"


def as_text(rows: Sequence[Row]) -> str:
    """For a terminal."""
    names = shown_columns(rows)
    lines = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    return "\n".join(aligned(lines, left=range(len(names))))


def as_markdown(rows: Sequence[Row]) -> str:
    """For a page."""
    names = shown_columns(rows)
    lines = [
        names,
        ["---"] * len(names),
        *([cell(row.get(name)).replace("|", "\\|") for name in names] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_table(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """Write ``NAME.csv`` and ``NAME.parquet``."""
    write_text(folder / f"{name}.csv", as_csv(rows))
    write_bytes(folder / f"{name}.parquet", as_parquet(rows))


def export(rows: Sequence[Row], kind: str, out: Path | None) -> str:
    """A table in one format, written to ``out``; a CSV may be given back to be printed.

    Raises:
        UserError: Parquet is to be printed, or the file cannot be written.
    """
    if kind == "csv" and out is None:
        return as_csv(rows)
    if out is None:
        raise UserError("--format parquet is for a file: give --out table.parquet")
    try:
        write_bytes(out, as_csv(rows).encode() if kind == "csv" else as_parquet(rows))
    except OSError as error:
        raise explain_os_error(error, f"writing {out}") from error
    return f"{len(rows)} rows are in {out}\n"
