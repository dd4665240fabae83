"""One candidate as a Ray Tune trial, on an actor that is reused from trial to trial."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from slm_ray.core.errors import UserError
from slm_ray.proxies.evaluator import Evaluator, EvaluatorSettings
from slm_ray.proxies.race import Rival
from slm_ray.search.plan import Job, SearchPlan
from slm_ray.search.stack import GenomeStack

_MOST_ERROR_CHARACTERS = 300
_MOST_WORKER_DEATHS = 3


class CandidateTrial(tune.Trainable):
    """Measures one candidate per trial; the teacher stays mapped between them."""

    def setup(
        self, config: dict[str, Any], settings: EvaluatorSettings | None = None, stack: GenomeStack | None = None
    ) -> None:
        """Prepare an actor for its first trial.

        Args:
            config: The trial's job, as JSON text under ``job``.
            settings: What to measure with.
            stack: What genes stand for.
        """
        assert settings is not None and stack is not None
        self._evaluator, self._stack = Evaluator(settings), stack
        self._job: dict[str, Any] = json.loads(config["job"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial's candidate; nothing of the last one is kept."""
        self._job = json.loads(new_config["job"])
        return True

    def step(self) -> dict[str, Any]:
        """Measure the candidate. What goes wrong inside is a failed candidate, not a failed worker."""
        rival = None if self._job["rival"] is None else Rival(tuple(self._job["rival"]))
        try:
            spec = self._stack.decode(self._stack.from_text(self._job["genes"]))
            answer: dict[str, Any] = {"outcome": self._evaluator.evaluate(spec, rival).to_json(), "error": None}
        except Exception as error:
            answer = {"outcome": None, "error": f"{type(error).__name__}: {error}"[:_MOST_ERROR_CHARACTERS]}
        return {"answer": json.dumps(answer), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: a finished candidate is in the run's records, an unfinished one is measured again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


class PlanSearcher(Searcher):
    """Tune's view of a search plan."""

    def __init__(self, plan: SearchPlan) -> None:
        super().__init__()
        self.plan = plan
        self.fatal: UserError | None = None
        self._jobs: dict[str, Job] = {}
        self._deaths: Counter[int] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it was given, to restore it some day; we resume from the run's records instead."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """A job; None at a generation's end while others still run; FINISHED when all is done."""
        if self.fatal is not None:
            return Searcher.FINISHED
        try:
            job = self.plan.next_job()
        except UserError as error:
            self.fatal = error
            return Searcher.FINISHED
        if job is None:
            return Searcher.FINISHED if self.plan.is_finished else None
        self._jobs[trial_id] = job
        rival = None if job.rival is None else job.rival.blocks
        return {"job": json.dumps({"trial": job.trial, "genes": job.genes, "rival": rival})}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write the candidate's record. One whose actor died is measured again, unless that happens again and again."""
        job = self._jobs.pop(trial_id, None)
        if job is None or self.fatal is not None:
            return
        answer = json.loads(result["answer"]) if result and "answer" in result and not error else None
        self._deaths[job.trial] += answer is None
        try:
            if answer is not None:
                self.plan.finish(job, answer["outcome"], answer["error"])
            elif self._deaths[job.trial] <= _MOST_WORKER_DEATHS:
                self.plan.put_back(job)
            else:
                self.plan.finish(job, None, "the worker died again and again while measuring this candidate")
        except UserError as problem:
            self.fatal = problem

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the plan is replayed from the run's records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
