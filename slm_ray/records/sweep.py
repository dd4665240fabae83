"""The records of a sweep: how attempts at its tasks ended, and its result."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from slm_ray.records.base import Part, Record


class SweepOptions(Part):
    """What a sweep was started with; the options of its :class:`slm_ray.records.run.RunRecord`."""

    name: str
    source: str  # The file, as it was given
    file: str  # Its text
    scale: str | None  # The scale asked for
    settings: tuple[str, ...]  # ``field=value`` over the file
    max_runs: int | None  # The most points; None for the default
    storage: str | None  # Where the run is kept as well


class Attempt(Record):
    """How one attempt at a task ended, written before anything depends on it."""

    FILE: ClassVar[str] = "attempts.jsonl"
    task: str  # The task's folder
    stage: str
    status: Literal["done", "failed", "stopped"]  # ``stopped``: early, by a scheduler
    error: str | None
    seconds: float  # What this attempt took


class SweepResult(Record):
    """A sweep's result, written last; its table is in files of its own."""

    FILE: ClassVar[str] = "sweep.json"
    name: str
    scale: str | None
    command: str
    points: int
    rows: int
    states: dict[str, int]  # Number of rows by their state
    pictures: tuple[str, ...]
    found: tuple[str, ...]  # What its analyses say, a line each
    figures: dict[str, Any]  # Fitted laws by the name of their plot
