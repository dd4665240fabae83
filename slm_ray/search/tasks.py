"""Messages between a plan and its workers: tasks, outcomes, and why there is no task."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from slm_ray.records.base import Part
from slm_ray.records.search import Measurement
from slm_ray.search.race import Rival


class Idle(Enum):
    """Why there is no task: ``WAIT`` while others still measure their part of a generation, ``DONE`` at the end."""

    WAIT = "wait"
    DONE = "done"


@dataclass(frozen=True)
class Task:
    """One candidate to be measured."""

    index: int  # Its trial's number, in the order the algorithm proposed it
    generation: int  # The generation it belongs to
    origin: str  # What proposed it
    genes: str  # Its genes as text, which a :class:`GenomeStack` decodes
    rival: Rival | None  # The front's member it has to beat; None to measure it in full


class Outcome(Part):
    """What measuring one candidate gave."""

    measurements: dict[str, Measurement]  # By proxy, as far as each was measured
    values: dict[str, float]  # By proxy, the value to be searched on: for a staged proxy, its estimate over all tokens
    decided: Literal["full", "dominated"]  # ``dominated`` where the race ended early, else ``full``
    seconds: float  # Wall time of it all

    def rounded(self) -> Outcome:
        """The outcome with as many digits as records keep, so that a resumed search computes with the very same."""
        return Outcome(
            measurements={name: measured.rounded() for name, measured in self.measurements.items()},
            values={name: float(f"{value:.7g}") for name, value in self.values.items()},
            decided=self.decided,
            seconds=round(self.seconds, 4),
        )
