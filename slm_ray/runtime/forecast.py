"""What work will cost before any of it is done: tokens, FLOPs, time, memory and disk, of every dry run alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slm_ray.config.columns import aligned
from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.runtime.environment import describe_environment

SLOWDOWN = {"bf16": 4.0, "fp16": 4.0, "fp32": 1.5}
"""A forward pass's time over that of its matrix multiplications alone, on a processor."""

Kind = Literal["search", "training", "teacher", "capture", "evaluation"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One part of what is computed."""

    name: str  # The phase, or the model
    kind: Kind  # What it counts as where costs are added up
    tokens: float = 0  # Expected to go through a model
    most_tokens: float = 0  # The most there can be, where that is more
    flops: float = 0.0  # Of the expected tokens
    start_seconds: float = 0.0  # To start, whatever there is to compute
    slowdown: float = 1.0  # The work's time over that of its matrix multiplications alone

    def seconds(self, rate: float) -> float:
        """Expected time at a rate of multiplication: FLOPs per second of all workers."""
        return self.start_seconds + self.flops * self.slowdown / rate


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a task will cost."""

    work: tuple[Work, ...] = ()  # Its parts, in order
    memory_bytes: float = 0.0  # At its peak, of one machine; an estimate
    disk_bytes: float = 0.0  # What it leaves
    workers: int = 1  # Devices that share the work
    notes: tuple[str, ...] = ()  # What is not in it, or not known

    @property
    def tokens(self) -> float:
        """Tokens of all parts."""
        return sum(part.tokens for part in self.work)

    @property
    def flops(self) -> float:
        """FLOPs of all parts."""
        return sum(part.flops for part in self.work)

    def flops_of(self, *kinds: Kind) -> float:
        """FLOPs of the parts of some kinds."""
        return sum(part.flops for part in self.work if part.kind in kinds)

    def seconds(self, rate: float) -> float:
        """Expected time at a rate of multiplication, one part after the other."""
        return sum(part.seconds(rate) for part in self.work)

    def table(self, rate: float | None = None) -> list[str]:
        """Lines with tokens, FLOPs and, at a rate of multiplication, time of every part and of all."""
        rows = [("phase", "tokens", "at most", "FLOPs", "time")]
        for part in self.work:
            most = f"{max(part.tokens, part.most_tokens):,.0f}"
            counts = (f"{part.tokens:,.0f}", most, format_count(part.flops)) if part.tokens else ("–", "–", "–")
            rows.append((part.name, *counts, _time(part.seconds(rate) if rate else 0)))
        rows.append(
            ("together", f"{self.tokens:,.0f}", "", format_count(self.flops), _time(self.seconds(rate) if rate else 0))
        )
        return aligned(rows if rate else [row[:-1] for row in rows])

    def memory_lines(self, fix: str, *, here: bool = True) -> list[str]:
        """The memory it needs beside the machine's, and a note where that is more."""
        there = describe_environment().memory_bytes if here else None
        of = f" of {format_bytes(there)}" if there else ""
        lines = [f"memory: about {format_bytes(self.memory_bytes)}{of}"]
        if there and self.memory_bytes > there:
            lines.append("note: that is more memory than there is" + (f"; {fix}" if fix else ""))
        return lines


def _time(seconds: float) -> str:
    return f"~{format_seconds(seconds)}" if seconds else "–"


def total(forecasts: Sequence[Forecast]) -> Forecast:
    """Forecasts added up; memory is that of the largest."""
    return Forecast(
        work=tuple(part for forecast in forecasts for part in forecast.work),
        memory_bytes=max((forecast.memory_bytes for forecast in forecasts), default=0.0),
        disk_bytes=sum(forecast.disk_bytes for forecast in forecasts),
        workers=max((forecast.workers for forecast in forecasts), default=1),
        notes=tuple(dict.fromkeys(note for forecast in forecasts for note in forecast.notes)),
    )


_TELLING_SECONDS = 15.0  # a shorter phase says little about a machine


class Schedule:
    """The phases of a run in order, what each is expected to take and took: when all of it will be over."""

    def __init__(self, phases: Sequence[str]) -> None:
        """Take the phases' names; nothing is expected yet."""
        self.phases = list(phases)
        self._expected: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._running: str | None = None

    def expect(self, forecast: Forecast, rate: float) -> None:
        """Expect what a forecast says, whose parts have the phases' names.

        Args:
            forecast: Of the whole run.
            rate: FLOPs per second of all workers at multiplying matrices.
        """
        self._expected = {part.name: part.seconds(rate) for part in forecast.work}

    def begin(self, phase: str) -> str:
        """Begin a phase; gives its number among all, such as ``[2/7]``."""
        self._running = phase
        return f"[{self.phases.index(phase) + 1}/{len(self.phases)}]"

    def end(self, seconds: float) -> None:
        """End the phase that was begun last."""
        if self._running is not None:
            self._took[self._running] = seconds

    @property
    def undone(self) -> list[str]:
        """The phases that have not ended."""
        return [phase for phase in self.phases if phase not in self._took]

    @property
    def left(self) -> float:
        """Seconds that the phases which have not ended will take, at the pace of those that have; 0 if unknown."""
        return self._seconds(self.undone)

    @property
    def after(self) -> float:
        """The same of the phases after the one that runs."""
        return self._seconds([phase for phase in self.undone if phase != self._running])

    def _seconds(self, phases: Sequence[str]) -> float:
        """Expected seconds at the pace of the long phases so far, those left out that found their work in a cache."""
        worked = [(took, self._expected.get(phase, 0.0)) for phase, took in self._took.items()]
        worked = [(took, expected) for took, expected in worked if expected > _TELLING_SECONDS and took > expected / 5]
        pace = sum(took for took, _ in worked) / sum(expected for _, expected in worked) if worked else 1.0
        pace = max(1.0, pace)  # that one phase was fast is no reason to hurry the others
        return pace * sum(self._expected.get(phase, 0.0) for phase in phases)
