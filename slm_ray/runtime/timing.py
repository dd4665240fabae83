"""How long a piece of work takes, run again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

_FEWEST_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on one figure.

    Attributes:
        warm_up: Runs that are not counted.
        least_runs: Runs that are counted, and …
        least_seconds: … the time that they take together, at least; the longer of the two.
        most_seconds: After that long, three runs are enough.
    """

    warm_up: int = 2
    least_runs: int = 10
    least_seconds: float = 1.0
    most_seconds: float = 6.0

    def is_enough(self, runs: int, seconds: float) -> bool:
        """Whether so many runs that took so long are enough."""
        wanted = runs >= self.least_runs and seconds >= self.least_seconds
        return wanted or (seconds >= self.most_seconds and runs >= _FEWEST_RUNS)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one run, with all that it put on the device: what somebody who waits for it waits."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def time_runs(work: Callable[[], object], device: torch.device, effort: Effort) -> list[float]:
    """Wall times of runs of the same work, after a warm-up.

    Args:
        work: One run.
        device: Where it runs.
        effort: How many runs.

    Returns:
        Seconds, one per run.
    """
    spent = 0.0
    for _ in range(effort.warm_up):
        if spent < effort.most_seconds / 2:
            spent += seconds_of(work, device)
    times: list[float] = []
    while not effort.is_enough(len(times), sum(times)):
        times.append(seconds_of(work, device))
    return times


def distribution_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile (interpolated between runs), least and most, in milliseconds."""
    values = 1e3 * np.asarray(seconds)
    median, p90, p99 = np.percentile(values, (50, 90, 99))
    return {
        "median": float(median), "p90": float(p90), "p99": float(p99), "min": float(values.min()),
        "max": float(values.max()),
    }  # fmt: skip
