"""How the learning rate and the weight of the teacher's signal change over a run.

Every schedule is a pure function of the step, so a resumed run needs no state to go on with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from slm_ray.config.base import Config, option
from slm_ray.distill.config import WeightSchedule as WeightKind

Kind = Literal["cosine", "wsd", "linear", "constant"]


class ScheduleConfig(Config):
    """The learning-rate schedule; ``floor`` is what its decay ends at."""

    schedule: Kind = option("cosine", "learning-rate schedule")
    warmup: float = option(0.1, "share of the steps in which the rate rises", ge=0, le=1)
    floor: float = option(0.1, "lowest rate at the end, as a share of the peak", ge=0, le=1)


@dataclass(frozen=True)
class Schedule:
    """A multiplier of the peak learning rate for every step of a run.

    All kinds first rise in a straight line: step ``s`` of ``warmup_steps`` has ``(s + 1) / warmup_steps``. Then, with
    ``p`` the part of the decay that lies behind a step (0 at its first step, 1 only after the run's last):

    - ``cosine``: ``floor + (1 - floor) * (1 + cos(pi * p)) / 2`` (SGDR, arXiv 1608.03983, without restarts);
    - ``linear``: ``1 - (1 - floor) * p``;
    - ``wsd``: 1 until the last ``decay_fraction`` of the run, then ``floor + (1 - floor) * (1 - sqrt(p))``, the
      "1-sqrt" form of arXiv 2405.18392 (theirs has a floor of 0);
    - ``constant``: 1.
    """

    kind: Kind  # Its name
    warmup_steps: int  # Steps of the rise; 0 for none
    total_steps: int  # Optimiser steps of the whole run
    floor_ratio: float = 0.1  # Where the decay ends, as a part of the peak; ``constant`` does not use it
    decay_fraction: float = 0.2  # The part of the run in which ``wsd`` decays; a longer warm-up shortens it

    @classmethod
    def of(cls, config: ScheduleConfig, total_steps: int) -> Schedule:
        """The schedule of a run of so many steps."""
        return cls(config.schedule, math.ceil(config.warmup * total_steps), total_steps, config.floor)

    @property
    def decay_start(self) -> int:
        """The step at which the decay begins; ``total_steps`` where there is none."""
        if self.kind == "constant":
            return self.total_steps
        if self.kind == "wsd":
            decay_steps = max(1, round(self.decay_fraction * self.total_steps))
            return max(self.warmup_steps, self.total_steps - decay_steps)
        return self.warmup_steps

    def factor(self, step: int) -> float:
        """The multiplier of the peak learning rate at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step < self.decay_start or self.kind == "constant":
            return 1.0
        part = min(1.0, (step - self.decay_start) / max(1, self.total_steps - self.decay_start))
        curve = {
            "cosine": (1 + math.cos(math.pi * part)) / 2,
            "linear": 1 - part,
            "wsd": 1 - math.sqrt(part),
        }[self.kind]
        return self.floor_ratio + (1 - self.floor_ratio) * curve


@dataclass(frozen=True)
class WeightSchedule:
    """The weight of the teacher's loss beside the cross-entropy, over a run.

    ``constant`` keeps it; ``linear`` takes it to 0 at the end of the run; ``wsd`` lets it rise over the warm-up, stay,
    and fall to 0 while a WSD learning rate decays (the best of arXiv 2410.16215, with a WSD learning rate).
    """

    kind: WeightKind  # Its name
    value: float  # The highest weight

    def weight(self, step: int, schedule: Schedule) -> float:
        """The weight at a step."""
        if self.kind == "constant":
            return self.value
        if self.kind == "linear":
            return self.value * max(0.0, 1 - step / schedule.total_steps)
        return self.value * replace(schedule, kind="wsd", floor_ratio=0.0).factor(step)
