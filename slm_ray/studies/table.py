"""The one table of a sweep, a row for every model of every point, as CSV, Parquet, Markdown and text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.columns import aligned
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.records.files import explain_os_error, write_bytes, write_text
from slm_ray.studies.launching import DONE, FAILED, Outcome
from slm_ray.studies.metrics import Row, read_curves, read_metrics
from slm_ray.studies.points import Point, Task, task_folder
from slm_ray.studies.stages import is_done

UNFINISHED = "unfinished"
# Options that are called as a figure of their stage and are none: the figure keeps the name.
_CALLED_AS_A_FIGURE = {"loss": "divergence"}


def state_of(point: Point, run: Path, outcomes: Mapping[str, Outcome]) -> tuple[str, str | None]:
    """Whether a point is done, and what went wrong where it is not."""
    for task in point.tasks:
        outcome = outcomes.get(task.name)
        if is_done(task.stage, task_folder(task, run)) and (outcome is None or outcome.status != FAILED):
            continue
        if outcome is None or outcome.status == DONE:
            return UNFINISHED, None
        error = outcome.error if outcome.status == FAILED else None
        is_last = task is point.tasks[-1]
        return outcome.status, error if is_last or error is None else f"its {task.step} failed: {error}"
    return DONE, None


def point_rows(
    name: str, point: Point, run: Path, outcomes: Mapping[str, Outcome], *, is_single: bool
) -> list[Row]:  # fmt: skip
    """The rows of a point: those of its last step, with the figures of the steps before it."""
    status, error = state_of(point, run, outcomes)
    start: Row = {"sweep": name, "point": point.number}
    start |= {"group": point.group} if point.group else {}
    start |= _options(point)
    start |= {"status": status, "error": error}
    for task in point.tasks[:-1]:
        found = read_metrics(task.stage.name, task_folder(task, run))
        start |= _named(task, found[0] if found else {}, start, is_single=is_single)
    last = point.tasks[-1]
    outcome = outcomes.get(last.name)
    end = {"task": last.name, "wall_seconds": outcome.seconds if outcome and status == DONE else None}
    rows = read_metrics(last.stage.name, task_folder(last, run)) or [{}]
    return [start | _named(last, row, start, is_single=is_single) | end for row in rows]


def _named(task: Task, row: Row, start: Row, *, is_single: bool) -> Row:
    named = row if is_single else {f"{task.step}.{key}": value for key, value in row.items()}
    # What was varied keeps its column: tokens as they were asked for are the row's own tokens anyway.
    return {key if key not in start else f"{key}_measured": value for key, value in named.items()}


def _options(point: Point) -> Row:
    """What was varied, a column each."""
    return {_option_column(key): _plain(value) for key, value in point.values.items()}


def _option_column(key: str) -> str:
    step, dot, name = key.rpartition(".")
    return f"{step}{dot}{_CALLED_AS_A_FIGURE.get(name, name)}"


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def curve_rows(point: Point, run: Path) -> list[Row]:
    """The training curves of a point."""
    start: Row = {"point": point.number}
    start |= {"group": point.group} if point.group else {}
    start |= _options(point)
    rows = []
    for task in point.tasks:
        for row in read_curves(task.stage.name, task_folder(task, run)):
            rows.append(start | {"step": task.step} | _named(task, row, start, is_single=True))
    return rows


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every column, in the order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


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
    """A table in one format, written to ``out``; a CSV may be given back to be printed."""
    if kind == "csv" and out is None:
        return as_csv(rows)
    if out is None:
        raise UserError("--format parquet is for a file: give --out table.parquet")
    try:
        write_bytes(out, as_csv(rows).encode() if kind == "csv" else as_parquet(rows))
    except OSError as error:
        raise explain_os_error(error, f"writing {out}") from error
    return f"{len(rows)} rows are in {out}\n"
