"""``phases.json``: the time and the once-paid costs of all processes of a run, however many of them were killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.records.files import read_json, write_json

PHASES_FILE = "phases.json"
# What is paid for once, because it is kept in the cache, or measured again only where a process was killed after it.
TEACHER_TEXT, UNIT_SCORES = "teacher text", "unit scores"
HELD_OUT, OTHER_TEXT = "held-out text", "other text"
_NOTE_EVERY_SECONDS = 2.0  # a killed process loses so much of its time at most, besides one candidate's


class PhaseRecord:
    """What every process of a run has spent so far, phase by phase; on the disk while a phase still runs.

    What a killed process was in the middle of is in its seconds; in tokens and FLOPs is what it finished.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read what earlier processes noted.

        Args:
            path: The file.
            clock: Seconds of a clock that only goes forward.

        Raises:
            UserError: The file is damaged.
        """
        self._path, self._clock = path, clock
        kept = read_json(path) if path.exists() else {}
        try:
            self.processes = int(kept.get("processes", 0)) + 1
            self._seconds = {str(name): float(value) for name, value in kept.get("seconds", {}).items()}
            self._paid = {
                str(name): {"tokens": int(cost["tokens"]), "flops": float(cost["flops"])}
                for name, cost in kept.get("paid", {}).items()
            }
            self._generations = {int(number): float(value) for number, value in kept.get("generations", {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error!r}): delete it; the run forgets its earlier time") from error
        self._running: tuple[str, float] | None = None
        self._noted = -_NOTE_EVERY_SECONDS

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block; what earlier processes spent in a phase of this name is added to."""
        self._running = name, self._clock()
        try:
            yield
        finally:
            self._count()
            self._running = None
            self._write()

    def note(self) -> None:
        """Note how far the running phase is, if that was not done a moment ago. For whatever hears of progress."""
        if self._clock() - self._noted >= _NOTE_EVERY_SECONDS:
            self._count()
            self._write()

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase, those of all processes together, in the order they were first run."""
        self._count()
        return {name: round(value, 2) for name, value in self._seconds.items()}

    def pay(self, what: str, tokens: int, flops: float) -> None:
        """Note a cost that no later process of this run will have again; nothing where nothing was spent.

        Args:
            what: What for; costs of one name add up.
            tokens: Tokens that went through a model.
            flops: FLOPs.
        """
        if not tokens and not flops:
            return
        before = self._paid.get(what, {"tokens": 0, "flops": 0.0})
        self._paid[what] = {"tokens": before["tokens"] + tokens, "flops": before["flops"] + flops}
        self._write()

    def paid(self) -> dict[str, dict[str, Any]]:
        """Tokens and FLOPs by what they were paid for, by all processes."""
        return {name: dict(cost) for name, cost in self._paid.items()}

    def generation_seconds(self, generation: int) -> float:
        """Seconds of the running phase, of all processes, when a generation was closed for the first time.

        A resumed search closes the generations on record again: they keep the seconds they had.
        """
        if generation not in self._generations:
            self._count()
            self._generations[generation] = round(self._seconds[self._running[0]] if self._running else 0.0, 2)
            self._write()
        return self._generations[generation]

    def _count(self) -> None:
        """Add the time since this was done last to the running phase."""
        if self._running is not None:
            (name, since), now = self._running, self._clock()
            self._seconds[name] = self._seconds.get(name, 0.0) + now - since
            self._running = name, now

    def _write(self) -> None:
        self._noted = self._clock()
        write_json(self._path, {
            "processes": self.processes, "seconds": {name: round(value, 2) for name, value in self._seconds.items()},
            "paid": self._paid, "generations": {str(number): value for number, value in self._generations.items()},
        })  # fmt: skip
