"""What else kept the processors busy while something was timed: figures taken on a busy machine say so."""

from __future__ import annotations

import os
import time

import psutil


def _busy_seconds() -> float:
    """CPU time that the whole machine has worked since it was started."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "steal", 0.0))


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


class Neighbours:
    """The share of the machine's processors that other processes use from one moment to another."""

    def __init__(self) -> None:
        """Start now."""
        self._start = (time.monotonic(), _busy_seconds(), _own_seconds())

    def share(self) -> float:
        """Of all processors since the start, between 0 and 1."""
        wall, busy, own = self._start
        seconds = (time.monotonic() - wall) * (psutil.cpu_count() or 1)
        others = (_busy_seconds() - busy) - (_own_seconds() - own)
        return min(1.0, max(0.0, others / seconds)) if seconds > 0 else 0.0
