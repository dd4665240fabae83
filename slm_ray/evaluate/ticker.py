"""Lines of progress from a worker: how far a measurement is, and when it will be over."""

from __future__ import annotations

import time
from collections.abc import Callable

from slm_ray.config.units import format_seconds

_EVERY_SECONDS = 10.0


class Ticker:
    """Says how far something is, at most every ten seconds; silent where it takes less."""

    def __init__(self, say: Callable[[str], None], what: str, total: int, unit: str) -> None:
        self._say, self._what, self._total, self._unit = say, what, total, unit
        self._start = self._last = time.monotonic()
        self.done = 0

    def advance(self, count: int) -> None:
        """Count units as done."""
        self.done += count
        now = time.monotonic()
        if now - self._last < _EVERY_SECONDS or self.done >= self._total:
            return
        self._last = now
        left = (now - self._start) / max(self.done, 1) * (self._total - self.done)
        self._say(f"{self._what} · {self.done:,}/{self._total:,} {self._unit} · ETA {format_seconds(left)}")
