"""What to measure next: the algorithm's generations, the race's rivals, and the records of what is done.

The plan is a function of the seed and of the results, so replaying it over the records of a killed run brings it to
where that run was: candidates already on record are not measured again. Workers drive it through three calls:
:meth:`SearchPlan.next`, :meth:`SearchPlan.finish` and :meth:`SearchPlan.give_back`. How many there are, and who
finishes first, changes nothing that is found.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.records.budget import QUANTITIES
from slm_ray.records.search import HypervolumePoint, ModelCost, ModelShape, Trial
from slm_ray.search.algorithms import Algorithm
from slm_ray.search.axes import IntArray
from slm_ray.search.journal import Journal
from slm_ray.search.pareto import RunningFront, hypervolume
from slm_ray.search.race import Rival
from slm_ray.search.registry import PROXIES
from slm_ray.search.stack import COST_STEPS, GenomeStack
from slm_ray.search.tasks import Idle, Outcome, Task

FAILED_VALUE = 1e9  # finite, so that a failed candidate can never sit on a front
# Before a task that came back is handed out again: that a storage is away a minute, or a machine is lost, is no fault
# of the candidate's. A candidate that comes back once more fails.
RESTS_SECONDS = (0.0, 5.0, 60.0)
_MOST_STALE_GENERATIONS = 20


class SearchPlan:
    """Hands out tasks, takes in outcomes, writes trials, and tells the algorithm.

    Attributes:
        stack: What is searched
        objectives: A proxy, and a cost if there are two
        journal: The run's trials
        history: The hypervolume after every generation
        repeats: Proposals that were known already
    """

    def __init__(
        self,
        stack: GenomeStack,
        algorithm: Algorithm,
        objectives: tuple[str, ...],
        journal: Journal,
        max_trials: int,
        on_record: Callable[[Trial], None] = lambda trial: None,
        seconds_at: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up.

        ``seconds_at``: Seconds of the search when a generation was closed; of this plan's own time by default.
        """
        self.stack, self.algorithm, self.objectives, self.journal = stack, algorithm, objectives, journal
        self.max_trials, self.on_record, self._clock = max_trials, on_record, clock
        self.generation = -1
        self.repeats = 0
        self.history: list[HypervolumePoint] = []
        self._known: dict[str, int] = {}
        self._batch: list[str] = []
        self._open: dict[int, Task] = {}  # of this generation, not on record yet: queued, resting or being measured
        self._queue: list[int] = []
        self._rests_until: dict[int, float] = {}
        self._losses: Counter[int] = Counter()
        self._exhausted = False
        start = clock()
        self._seconds_at = seconds_at or (lambda generation: round(clock() - start, 2))
        # Of all trials, and of those of generations that are closed; the latter does not depend on a resume.
        self._front: RunningFront[Trial] = RunningFront()
        self._earlier: RunningFront[Trial] = RunningFront()
        for trial in journal:
            self._take(self._front, trial)

    # For workers

    def next(self) -> Task | Idle:
        """The next candidate to measure, or why there is none now."""
        now = self._clock()
        for index in [index for index, until in self._rests_until.items() if until <= now]:
            del self._rests_until[index]
            self._queue.insert(0, index)
        stale = 0
        while not (self._open or self._exhausted):
            self._close_generation()
            if not self._exhausted:
                before = len(self._known)
                self._open_generation()
                stale = 0 if len(self._known) > before else stale + 1
                self._exhausted |= stale >= _MOST_STALE_GENERATIONS
        if not self._queue:
            return Idle.DONE if self.is_finished else Idle.WAIT
        return self._open[self._queue.pop(0)]

    def finish(self, index: int, outcome: Outcome | None, error: str | None = None) -> None:
        """Write a finished candidate's trial. A second result of one that is on record is passed over.

        ``outcome``: What measuring it gave, rounded as records are; None where it failed.
        """
        if index not in self._open:
            return
        trial = self._trial_of(self._open[index], None if error else outcome, error)
        self.journal.append(trial)
        del self._open[index]
        self._rests_until.pop(index, None)
        self._queue = [queued for queued in self._queue if queued != index]
        self._take(self._front, trial)
        self.on_record(trial)

    def give_back(self, index: int, reason: str) -> None:
        """Queue a task again whose worker was lost, or could not read its files.

        It rests for a while first, longer each time, and in the end fails.
        """
        if index not in self._open or index in self._rests_until or index in self._queue:
            return
        losses = self._losses[index]
        self._losses[index] += 1
        if losses == len(RESTS_SECONDS):
            self.finish(index, None, reason)
        else:
            self._rests_until[index] = self._clock() + RESTS_SECONDS[losses]

    @property
    def is_finished(self) -> bool:
        """Nothing is left to measure."""
        return self._exhausted and not self._open

    # What was found

    def values_of(self, trial: Trial) -> list[float]:
        """A trial's objectives, all to be minimised; see :meth:`values`."""
        return self.values(trial.objectives if trial.status == "done" else None)

    def values(self, objectives: dict[str, int | float] | None) -> list[float]:
        """Objectives as algorithms are told them, all to be minimised: perplexity as its logarithm, gains negated.

        Costs in the budget's quantity are rounded up to steps, so that a front is not crowded by candidates that differ
        by a few weights, and one that is ruined but a trifle smaller does not stay on it.

        ``objectives``: Values by name; None of a failed candidate.
        """
        if objectives is None:
            return [FAILED_VALUE] * len(self.objectives)
        values = []
        for name in self.objectives:
            value = float(objectives[name])
            if name == "perplexity":
                value = math.log(value)
            elif name == self.stack.budget.quantity:
                value = self.stack.step_of(value)
            elif name in PROXIES and not PROXIES[name].minimise:
                value = -value
            values.append(value if math.isfinite(value) else FAILED_VALUE)
        return values

    def measured_front(self) -> list[Trial]:
        """The non-dominated candidates among those measured on all tokens, by their first objective."""
        return self._front.items()

    # Generations

    def _trial_of(self, task: Task, outcome: Outcome | None, error: str | None) -> Trial:
        genes = self.stack.from_text(task.genes)
        sources = [layer.source for layer in self.stack.decode(genes).layers]
        architecture = self.stack.architecture(genes)
        cost = ModelCost.of(architecture, self.stack.sequence_length)
        objectives: dict[str, int | float] | None = None
        if outcome is not None:
            values = outcome.values
            objectives = {name: values[name] if name in values else cost[name] for name in self.objectives}
        return Trial(
            trial=task.index, generation=task.generation, origin=task.origin, genes=task.genes,
            digest=digest_json([self.stack.space.digest, task.genes]), status="done" if outcome else "failed",
            error=error, architecture=ModelShape.of(architecture, sources), cost=cost,
            measurements=outcome.measurements if outcome else {}, objectives=objectives,
            decided=outcome.decided if outcome else None, seconds=outcome.seconds if outcome else 0.0,
            finished_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )  # fmt: skip

    def _open_generation(self) -> None:
        """Ask the algorithm, and queue what has not been measured yet."""
        proposals = self.algorithm.ask()
        if not proposals:
            self._exhausted = True
            return
        self.generation += 1
        front = self._racing_front()
        self._batch = [self.stack.to_text(proposal.genes) for proposal in proposals]
        for text, proposal in zip(self._batch, proposals, strict=True):
            if text in self._known:
                self.repeats += 1
            elif len(self._known) < self.max_trials:
                index = self._known[text] = len(self._known)
                if self.journal.find(text) is None:
                    rival = self._rival_of(proposal.genes, front)
                    self._open[index] = Task(index, self.generation, proposal.origin, text, rival)
                    self._queue.append(index)

    def _close_generation(self) -> None:
        """Tell the algorithm the whole generation, unless it was cut short by the number of trials."""
        if not self._batch:
            return
        trials = [self.journal.find(text) for text in self._batch]
        if self.generation == 0 and all(trial is None or trial.status == "failed" for trial in trials):
            reason = next((trial.error for trial in trials if trial), "nothing was measured")
            raise UserError(f"every candidate of the first generation failed, the first with: {reason}")
        for trial in trials:
            if trial is not None:
                self._take(self._earlier, trial)
        if all(trial is not None for trial in trials):
            self.algorithm.tell(np.array([self.values_of(trial) for trial in trials if trial]))
        self._note_progress()
        self._batch = []
        self._exhausted |= len(self._known) >= self.max_trials

    # The race, and how far the search is

    def _take(self, front: RunningFront[Trial], trial: Trial) -> None:
        if trial.is_full:
            front.add(self.values_of(trial), trial.trial, trial)

    def _racing_front(self) -> list[tuple[float, Rival]]:
        """(cost, rival) of the front so far, cheapest first; empty where there is nothing to race on."""
        staged, second = PROXIES[self.objectives[0]].staged, self.objectives[1:]
        if not staged or any(name not in QUANTITIES for name in second):
            return []
        front = []
        for trial in self._earlier.items():
            cost = self.values_of(trial)[1] if second else 0.0
            front.append((cost, Rival(trial.measurements[self.objectives[0]].blocks)))
        return sorted(front, key=lambda member: member[0])

    def _rival_of(self, genes: IntArray, front: list[tuple[float, Rival]]) -> Rival | None:
        """The best member of the front that costs no more than a candidate."""
        if not front:
            return None
        second = self.objectives[1:]
        cost: float = self.stack.cost(genes, second[0]) if second else 0
        if second and second[0] == self.stack.budget.quantity:
            cost = self.stack.step_of(cost)
        cheaper = [rival for other, rival in front if other <= cost]
        return min(cheaper, key=lambda rival: rival.mean) if cheaper else None

    def _note_progress(self) -> None:
        """Hypervolume of the front so far, in a box fixed by the first generation."""
        front = self._earlier.items()
        if not front:
            return
        values = np.array([self.values_of(trial) for trial in front])
        if not self.history:
            self._nadir = values.max(axis=0) + 0.1 * np.abs(values.max(axis=0))
            self._ideal = np.zeros(values.shape[1])
            if self.objectives[1:] == (self.stack.budget.quantity,):
                low, high = self.stack.reach()
                self._ideal[1], self._nadir[1] = low, high + (high - low) / COST_STEPS
        share = round(hypervolume(values, self._ideal, self._nadir), 6)
        seconds = self._seconds_at(self.generation)
        self.history.append(HypervolumePoint(evaluations=len(self._known), seconds=seconds, value=share))
