"""The one table of a sweep: a row for every model of every point, made from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """The rows of a point: those of its last step, with the figures of the steps before it.

    Args:
        name: The sweep's name.
        point: The point.
        run: The sweep's folder.
        outcomes: Task name to how its last attempt ended.
        is_single: Columns are called as the stage calls them; else the step's name is put before.
    """
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
