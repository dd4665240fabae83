"""What to measure next: the algorithm's generations, the race's rivals, and the records of what is done.

The plan is a function of the seed and of the results, so replaying it over the records of a killed run brings it to
where that run was: candidates already on record are not measured again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import QUANTITIES, measure_cost
from slm_ray.search.algorithms import Algorithm
from slm_ray.search.axes import IntArray
from slm_ray.search.journal import Journal
from slm_ray.search.pareto import RunningFront, hypervolume
from slm_ray.search.race import Rival
from slm_ray.search.registry import PROXIES
from slm_ray.search.stack import COST_STEPS, GenomeStack

FAILED_VALUE = 1e9  # finite, so that a failed candidate can never sit on a front
_MOST_STALE_GENERATIONS = 20


@dataclass(frozen=True)
class Job:
    """One candidate to be measured.

    Attributes:
        trial: Its number, in the order asked for.
        generation: The generation it belongs to.
        origin: What proposed it.
        genes: Its genes as text.
        rival: Whom it has to beat, or None.
    """

    trial: int
    generation: int
    origin: str
    genes: str
    rival: Rival | None


def describe_architecture(architecture: Architecture, sources: tuple[int, ...]) -> dict[str, Any]:
    """The sizes of a candidate as records hold them."""
    return {
        "hidden_size": architecture.hidden_size,
        "source_layers": list(sources),
        "num_attention_heads": [layer.num_attention_heads for layer in architecture.layers],
        "num_key_value_heads": [layer.num_key_value_heads for layer in architecture.layers],
        "intermediate_size": [layer.intermediate_size for layer in architecture.layers],
    }


def all_costs(architecture: Architecture, sequence_length: int) -> dict[str, int]:
    """Every cost of a candidate."""
    return {name: measure_cost(architecture, name, sequence_length) for name in QUANTITIES}


class SearchPlan:
    """Hands out jobs, takes in outcomes, writes records, and tells the algorithm."""

    def __init__(
        self,
        stack: GenomeStack,
        algorithm: Algorithm,
        objectives: tuple[str, ...],
        journal: Journal,
        max_trials: int,
        on_record: Callable[[dict[str, Any]], None] = lambda record: None,
        seconds_at: Callable[[int], float] | None = None,
    ) -> None:
        """Set up.

        Args:
            stack: What is searched.
            algorithm: What proposes candidates.
            objectives: A proxy, and a cost if there are two.
            journal: The run's records.
            max_trials: Candidates to measure in all.
            on_record: Called with every new record, after it is on the disk.
            seconds_at: Seconds of the search when a generation was closed; of this plan's own time by default.
        """
        self.stack, self.algorithm, self.objectives, self.journal = stack, algorithm, objectives, journal
        self.max_trials, self.on_record = max_trials, on_record
        self.generation = -1
        self.repeats = 0
        self.history: list[dict[str, float]] = []
        self._known: dict[str, int] = {}
        self._batch: list[str] = []
        self._waiting: list[Job] = []
        self._running: dict[int, Job] = {}
        self._finished = False
        start = time.monotonic()
        self._seconds_at = seconds_at or (lambda generation: round(time.monotonic() - start, 2))
        # Of all records, and of those of generations that are closed; the latter does not depend on a resume.
        self._front, self._earlier = RunningFront(), RunningFront()
        for record in journal.records:
            self._take(self._front, record)

    @property
    def is_finished(self) -> bool:
        """Nothing is left to measure."""
        return self._finished and not self._running

    def next_job(self) -> Job | None:
        """The next candidate to measure; None while a generation is being finished, and at the end."""
        stale = 0
        while not self._waiting and not self._running and not self._finished:
            self._close_generation()
            if not self._finished:
                before = len(self._known)
                self._open_generation()
                stale = 0 if len(self._known) > before else stale + 1
                self._finished |= stale >= _MOST_STALE_GENERATIONS
        if not self._waiting:
            return None
        job = self._waiting.pop(0)
        self._running[job.trial] = job
        return job

    def put_back(self, job: Job) -> None:
        """Queue a job again whose worker was lost."""
        self._running.pop(job.trial, None)
        self._waiting.insert(0, job)

    def _open_generation(self) -> None:
        """Ask the algorithm, and queue what has not been measured yet."""
        proposals = self.algorithm.ask()
        if not proposals:
            self._finished = True
            return
        self.generation += 1
        front = self._racing_front()
        self._batch = [self.stack.to_text(proposal.genes) for proposal in proposals]
        for text, proposal in zip(self._batch, proposals, strict=True):
            if text in self._known:
                self.repeats += 1
            elif len(self._known) < self.max_trials:
                trial = self._known[text] = len(self._known)
                if self.journal.find(text) is None:
                    rival = self._rival_of(proposal.genes, front)
                    self._waiting.append(Job(trial, self.generation, proposal.origin, text, rival))

    def _close_generation(self) -> None:
        """Tell the algorithm the whole generation, unless it was cut short by the number of trials."""
        if not self._batch:
            return
        records = [self.journal.find(text) for text in self._batch]
        if all(record is None or record["status"] == "failed" for record in records) and self.generation == 0:
            reason = next((record["error"] for record in records if record), "nothing was measured")
            raise UserError(f"every candidate of the first generation failed, the first with: {reason}")
        for record in records:
            if record is not None:
                self._take(self._earlier, record)
        if all(record is not None for record in records):
            self.algorithm.tell(np.array([self.values_of(record) for record in records if record]))
        self._note_progress()
        self._batch = []
        self._finished |= len(self._known) >= self.max_trials

    def finish(self, job: Job, outcome: dict[str, Any] | None, error: str | None) -> None:
        """Write a finished candidate's record.

        Raises:
            UserError: It could not be written.
        """
        genes = self.stack.from_text(job.genes)
        spec = self.stack.decode(genes)
        architecture = self.stack.architecture(genes)
        cost = all_costs(architecture, self.stack.sequence_length)
        if outcome and not all(math.isfinite(value) for value in outcome["values"].values()):
            error = error or f"the measurement is no number: {outcome['values']}"
        if error:
            outcome = None
        outcome = outcome or {"measurements": {}, "values": {}, "decided": None, "seconds": 0.0}
        record = {
            "trial": job.trial,
            "generation": job.generation,
            "origin": job.origin,
            "digest": digest_json([self.stack.space.digest, job.genes]),
            "genes": job.genes,
            "status": "failed" if error else "done",
            "error": error,
            "architecture": describe_architecture(architecture, tuple(layer.source for layer in spec.layers)),
            "cost": cost,
            "measurements": outcome["measurements"],
            "objectives": None
            if error
            else {name: outcome["values"].get(name, cost.get(name)) for name in self.objectives},
            "decided": outcome["decided"],
            "seconds": outcome["seconds"],
        }
        self.journal.append(record)
        self._running.pop(job.trial, None)
        self._take(self._front, self.journal.records[-1])
        self.on_record(self.journal.records[-1])

    def values_of(self, record: dict[str, Any]) -> list[float]:
        """A record's objectives, all to be minimised: perplexity as its logarithm, what is maximised negated.

        Costs in the budget's quantity are rounded up to steps, so that a front is not crowded by candidates that differ
        by a few weights, and one that is ruined but a trifle smaller does not stay on it.
        """
        if record["status"] != "done":
            return [FAILED_VALUE] * len(self.objectives)
        values = []
        for name in self.objectives:
            value = float(record["objectives"][name])
            if name == "perplexity":
                value = math.log(value)
            elif name == self.stack.budget.quantity:
                value = self._step_of(value)
            elif name in PROXIES and not PROXIES[name].minimise:
                value = -value
            values.append(value if math.isfinite(value) else FAILED_VALUE)
        return values

    def _step_of(self, cost: float) -> float:
        """The cost at the upper end of the step that a cost lies in."""
        return self.stack.step_of(cost)

    def measured_front(self) -> list[dict[str, Any]]:
        """The non-dominated candidates among those measured on all tokens, by their first objective."""
        return self._front.items()

    def _take(self, front: RunningFront, record: dict[str, Any]) -> None:
        if record["status"] == "done" and record["decided"] == "full":
            front.add(self.values_of(record), record["trial"], record)

    def _racing_front(self) -> list[tuple[float, Rival]]:
        """(cost, rival) of the front so far, cheapest first; empty where there is nothing to race on."""
        staged, second = PROXIES[self.objectives[0]].staged, self.objectives[1:]
        if not staged or any(name not in QUANTITIES for name in second):
            return []
        front = []
        for record in self._earlier.items():
            cost = self.values_of(record)[1] if second else 0.0
            front.append((cost, Rival(tuple(record["measurements"][self.objectives[0]]["blocks"]))))
        return sorted(front, key=lambda member: member[0])

    def _rival_of(self, genes: IntArray, front: list[tuple[float, Rival]]) -> Rival | None:
        """The best member of the front that costs no more than a candidate."""
        if not front:
            return None
        second = self.objectives[1:]
        cost: float = self.stack.cost(genes, second[0]) if second else 0
        if second and second[0] == self.stack.budget.quantity:
            cost = self._step_of(cost)
        cheaper = [rival for other, rival in front if other <= cost]
        return min(cheaper, key=lambda rival: rival.mean) if cheaper else None

    def _note_progress(self) -> None:
        """Hypervolume of the front so far, in a box fixed by the first generation."""
        front = self._earlier.items()
        if not front:
            return
        values = np.array([self.values_of(record) for record in front])
        if not self.history:
            self._nadir = values.max(axis=0) + 0.1 * np.abs(values.max(axis=0))
            self._ideal = np.zeros(values.shape[1])
            if self.objectives[1:] == (self.stack.budget.quantity,):
                low, high = self.stack.reach()
                self._ideal[1], self._nadir[1] = low, high + (high - low) / COST_STEPS
        self.history.append(
            {
                "evaluations": len(self._known),
                "seconds": self._seconds_at(self.generation),
                "value": round(hypervolume(values, self._ideal, self._nadir), 6),
            }
        )
