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
        self._plan, self._tracker = plan, tracker
        self._before = 0 if tracker.wants_earlier else plan.journal.resumed
        self._trials, self._generations = self._before, 0
        self._best: tuple[float, float] | None = None  # as minimised, and as it is called
        for trial in plan.journal[: self._before]:
            self._note_best(trial)

    def update(self) -> None:
        """Send what is new."""
        rows = []
        journal = self._plan.journal
        for number, trial in enumerate(journal[self._trials :], start=self._trials + 1):
            rows.append((2 * number, self._row(number, trial)))
        self._trials = len(journal)
        for point in self._plan.history[self._generations :]:
            row: dict[str, float] = {
                names.EVALUATIONS: point.evaluations, names.SECONDS: point.seconds, names.HYPERVOLUME: point.value,
            }  # fmt: skip
            if point.evaluations > self._before:
                rows.append((2 * point.evaluations + 1, row))
        self._generations = len(self._plan.history)
        for step, row in sorted(rows, key=lambda numbered: numbered[0]):
            self._tracker.log(row, step=step)

    def _note_best(self, trial: Trial) -> None:
        if trial.is_full and trial.objectives is not None:
            value = self._plan.values_of(trial)[0]
            if self._best is None or value < self._best[0]:
                self._best = value, trial.objectives[self._plan.objectives[0]]

    def _row(self, number: int, trial: Trial) -> dict[str, float]:
        """A candidate's figures, and the best value of the first objective so far."""
        self._note_best(trial)
        row: dict[str, float] = {
            names.EVALUATIONS: number, names.TRIAL: trial.trial, names.GENERATION: trial.generation,
            names.TRIAL_SECONDS: trial.seconds, names.FAILED: int(trial.status == "failed"),
            names.TRIAL_TOKENS: trial.tokens,
        }  # fmt: skip
        row |= {names.COST + name: value for name, value in trial.cost.to_json().items()}
        row |= {names.OBJECTIVE + name: value for name, value in (trial.objectives or {}).items()}
        if self._best is not None:
            row[names.BEST + self._plan.objectives[0]] = self._best[1]
        return row
