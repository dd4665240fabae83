"""What a search costs: the time of its phases, costs that are paid once, and the sum over everything computed.

``phases.json`` is of all processes of a run, however many of them were killed. It is on the disk while a phase still
runs: a killed process loses two seconds of its time at most, besides one candidate's. What it was in the middle of is
in its seconds; in tokens and FLOPs is what it finished.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from slm_ray.records.base import find_record, write_record
from slm_ray.records.cost import flops_per_token
from slm_ray.records.search import ModelCost, ModelsSpent, Paid, Phases, ShortTraining, Spent
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.plan import SearchPlan

# What is paid for once, because it is kept in the cache, or measured again only where a process was killed after it.
TEACHER_TEXT, UNIT_SCORES, HELD_OUT, OTHER_TEXT = "teacher text", "unit scores", "held-out text", "other text"
_NOTE_EVERY_SECONDS = 2.0


class PhaseRecord:
    """What every process of a run has spent so far, phase by phase."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        kept = find_record(folder, Phases) or Phases()
        self.processes = kept.processes + 1
        self._seconds, self._paid, self._generations = dict(kept.seconds), dict(kept.paid), dict(kept.generations)
        self._running: tuple[str, float] | None = None
        self._noted = -_NOTE_EVERY_SECONDS

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block, on top of what earlier processes spent in a phase of this name."""
        self._running = name, self._clock()
        try:
            yield
        finally:
            self._count()
            self._running = None
            self._write()

    def note(self) -> None:
        """Note how far the running phase is, if that was not done a moment ago."""
        if self._clock() - self._noted >= _NOTE_EVERY_SECONDS:
            self._count()
            self._write()

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase, of all processes together, in the order they were first run."""
        self._count()
        return {name: round(value, 2) for name, value in self._seconds.items()}

    def pay(self, what: str, tokens: int, flops: float) -> None:
        """Note a cost that no later process of this run will have again.

        ``flops``: FLOPs.
        """
        if not tokens and not flops:
            return
        before = self._paid.get(what, Paid())
        self._paid[what] = Paid(tokens=before.tokens + tokens, flops=before.flops + flops)
        self._write()

    def paid(self) -> dict[str, Paid]:
        """Tokens and FLOPs by what they were paid for, by all processes."""
        return dict(self._paid)

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
        seconds = {name: round(value, 2) for name, value in self._seconds.items()}
        write_record(
            self._folder,
            Phases(processes=self.processes, seconds=seconds, paid=self._paid, generations=self._generations),
        )


def pay_teacher_text(phases: PhaseRecord, inputs: SearchInputs, tokens: int) -> None:
    """Note what the teacher wrote: each token went through it once, what it had read kept in its cache."""
    phases.pay(TEACHER_TEXT, tokens, tokens * _teacher_flops(inputs))


def pay_unit_scores(phases: PhaseRecord, inputs: SearchInputs, tokens: int) -> None:
    """Note what gate gradients cost: a forward pass, and a backward pass for activations only, which costs as much."""
    phases.pay(UNIT_SCORES, tokens, 2 * tokens * _teacher_flops(inputs))


def _teacher_flops(inputs: SearchInputs) -> float:
    return float(flops_per_token(inputs.architecture, inputs.calibration.sequence_length))


def pay_text(phases: PhaseRecord, name: str, tokens: int, measured: Sequence[ModelCost]) -> None:
    """Note what measuring models on a text that decides nothing cost."""
    phases.pay(name, tokens * len(measured), float(tokens) * sum(cost.flops for cost in measured))


def spent_on(
    phases: PhaseRecord, plan: SearchPlan, trained: Mapping[int, ShortTraining], fits: ModelsSpent | None, workers: int
) -> Spent:
    """Everything that was computed, in tokens, FLOPs and seconds."""
    paid = phases.paid()
    training = None
    if trained:
        training = ModelsSpent(
            models=len(trained), failed=sum(one.error is not None for one in trained.values()),
            tokens=sum(one.tokens for one in trained.values()), flops=sum(one.flops for one in trained.values()),
        )  # fmt: skip
    tokens, flops, failed, busy = 0, 0.0, 0, 0.0
    for trial in plan.journal:
        tokens += trial.tokens
        flops += trial.tokens * trial.cost.flops
        failed += trial.status == "failed"
        busy += trial.seconds
    also: list[Paid | ModelsSpent] = [*paid.values(), *(one for one in (training, fits) if one is not None)]
    return Spent(
        seconds=phases.seconds(), processes=phases.processes,
        forward_tokens=tokens + sum(cost.tokens for cost in also), flops=flops + sum(cost.flops for cost in also),
        paid=paid, candidates=len(plan.journal), failed=failed, cache_hits=plan.repeats, resumed=plan.journal.resumed,
        busy_seconds=round(busy, 2), workers=workers, finalists=training, reconstruction=fits,
    )  # fmt: skip
