"""The records of a sweep: how attempts at its tasks ended, and its result."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from slm_ray.records.base import Part, Record


class SweepOptions(Part):
    """What a sweep was started with; the options of its :class:`slm_ray.records.run.RunRecord`.

    Attributes:
        source: The file, as it was given.
        file: Its text.
        scale: The scale asked for.
        settings: ``field=value`` over the file.
        max_runs: The most points; None for the default.
        storage: Where the run is kept as well.
    """

    name: str
    source: str
    file: str
    scale: str | None
    settings: tuple[str, ...]
    max_runs: int | None
    storage: str | None


class Attempt(Record):
    """How one attempt at a task ended, written before anything depends on it.

    Attributes:
        task: The task's folder.
        status: ``stopped``: early, by a scheduler.
        seconds: What this attempt took.
    """

    FILE: ClassVar[str] = "attempts.jsonl"
    task: str
    stage: str
    status: Literal["done", "failed", "stopped"]
    error: str | None
    seconds: float


class SweepResult(Record):
    """A sweep's result, written last; its table is in files of its own.

    Attributes:
        states: Number of rows by their state.
        found: What its analyses say, a line each.
        figures: Fitted laws by the name of their plot.
    """

    FILE: ClassVar[str] = "sweep.json"
    name: str
    scale: str | None
    command: str
    points: int
    rows: int
    states: dict[str, int]
    pictures: tuple[str, ...]
    found: tuple[str, ...]
    figures: dict[str, Any]
