"""A search's records, as they are written, passed on to a tracker: a row per candidate and a row per generation."""

from __future__ import annotations

from slm_ray.records import metric_names as names
from slm_ray.records.search import Trial
from slm_ray.runtime.trackers import Tracker
from slm_ray.search.plan import SearchPlan


class SearchTracking:
    """Sends what is new of a search.

    Candidate ``n`` is step ``2 n``, and the hypervolume after ``n`` evaluations is step ``2 n + 1``: steps only grow,
    and are the same in a resumed run.
    """

    def __init__(self, plan: SearchPlan, tracker: Tracker) -> None:
        """Follow a plan.

        Args:
            plan: The search; what an earlier process recorded is sent again where the tracker wants it.
            tracker: Where it goes.
        """
        self._plan, self._tracker = plan, tracker
        self._before = 0 if tracker.wants_earlier else plan.journal.resumed
        self._records, self._generations = self._before, 0
        self._best: tuple[float, dict[str, int | float]] | None = None
        for record in plan.journal[: self._before]:
            self._note_best(record)

    def update(self) -> None:
        """Send what is new."""
        rows = []
        journal = self._plan.journal
        for number, record in enumerate(journal[self._records :], start=self._records + 1):
            rows.append((2 * number, self._row(number, record)))
        self._records = len(journal)
        for entry in self._plan.history[self._generations :]:
            number = entry.evaluations
            row = {names.EVALUATIONS: entry.evaluations, names.SECONDS: entry.seconds,
                   names.HYPERVOLUME: entry.value}  # fmt: skip
            if number > self._before:
                rows.append((2 * number + 1, row))
        self._generations = len(self._plan.history)
        for step, row in sorted(rows, key=lambda numbered: numbered[0]):
            self._tracker.log(row, step=step)

    def _note_best(self, record: Trial) -> None:
        if record.is_full and record.objectives is not None:
            value = self._plan.values_of(record)[0]
            if self._best is None or value < self._best[0]:
                self._best = value, record.objectives

    def _row(self, number: int, record: Trial) -> dict[str, float]:
        """A candidate's figures, and the best value of the first objective so far."""
        self._note_best(record)
        row: dict[str, float] = {
            names.EVALUATIONS: number, names.TRIAL: record.trial, names.GENERATION: record.generation,
            names.TRIAL_SECONDS: record.seconds, names.FAILED: int(record.status == "failed"),
            names.TRIAL_TOKENS: record.tokens,
        }  # fmt: skip
        row |= {names.COST + name: value for name, value in record.cost.to_json().items()}
        row |= {names.OBJECTIVE + name: value for name, value in (record.objectives or {}).items()}
        if self._best is not None:
            first = self._plan.objectives[0]
            row[names.BEST + first] = self._best[1][first]
        return row
