"""One candidate as a Ray Tune trial, on an actor that is reused from trial to trial."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from slm_ray.config.redact import redact
from slm_ray.search.evaluator import Evaluator, EvaluatorSettings
from slm_ray.search.plan import Job, SearchPlan
from slm_ray.search.race import Rival
from slm_ray.search.stack import GenomeStack

_MOST_ERROR_CHARACTERS = 300
# Before a candidate whose worker died, or could not read its files, is tried again: that a storage is away a minute,
# or a machine is lost, is no fault of the candidate's.
_RESTS_SECONDS = (0.0, 5.0, 60.0)


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
        """Measure the candidate. What goes wrong inside is a failed candidate; with its files, a failed worker."""
        rival = None if self._job["rival"] is None else Rival(tuple(self._job["rival"]))
        try:
            spec = self._stack.decode(self._stack.from_text(self._job["genes"]))
            answer: dict[str, Any] = {"outcome": self._evaluator.evaluate(spec, rival).to_json(), "error": None}
        except Exception as error:
            said = redact(f"{type(error).__name__}: {error}")[:_MOST_ERROR_CHARACTERS]
            answer = {"outcome": None, "error": said, "again": _is_of_files(error)}
        return {"answer": json.dumps(answer), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: a finished candidate is in the run's records, an unfinished one is measured again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


def _is_of_files(error: Exception) -> bool:
    """Whether the system refused something, which it may not do a minute later."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)


class PlanSearcher(Searcher):
    """Tune's view of a search plan."""

    def __init__(self, plan: SearchPlan) -> None:
        super().__init__()
        self.plan = plan
        self.fatal: Exception | None = None  # raised when Tune is done, which would swallow it
        self._jobs: dict[str, Job] = {}
        self._deaths: Counter[int] = Counter()
        self._resting: list[tuple[float, Job]] = []
        self._excused: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it was given, to restore it some day; we resume from the run's records instead."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """A job; None at a generation's end while others still run; FINISHED when all is done."""
        if self.fatal is not None:
            return Searcher.FINISHED
        self._wake()
        try:
            job = self.plan.next_job()
        except Exception as error:
            self.fatal = error
            return Searcher.FINISHED
        if job is None:
            return Searcher.FINISHED if self.plan.is_finished else None
        self._jobs[trial_id] = job
        rival = None if job.rival is None else job.rival.blocks
        return {"job": json.dumps({"trial": job.trial, "genes": job.genes, "rival": rival})}

    def excuse(self, trial_id: str) -> None:
        """Take a trial's failure for its worker's alone: its candidate is measured again, whatever came before."""
        self._excused.add(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write the candidate's record. One whose actor died is measured again, unless that happens again and again."""
        job = self._jobs.pop(trial_id, None)
        if job is None or self.fatal is not None:
            return
        if trial_id in self._excused:
            self._excused.discard(trial_id)
            self.plan.put_back(job)
            return
        answer = json.loads(result["answer"]) if result and "answer" in result and not error else None
        deaths = self._deaths[job.trial]
        if answer is None or answer.get("again"):
            if deaths < len(_RESTS_SECONDS):
                self._deaths[job.trial] += 1
                self._resting.append((time.monotonic() + _RESTS_SECONDS[deaths], job))
                return
            said = "the worker died again and again while measuring this candidate"
            answer = {"outcome": None, "error": answer["error"] if answer else said}
        try:
            self.plan.finish(job, answer["outcome"], answer["error"])
        except Exception as problem:
            self.fatal = problem

    def _wake(self) -> None:
        """Queue the candidates again that have rested."""
        now = time.monotonic()
        for ready in [entry for entry in self._resting if entry[0] <= now]:
            self._resting.remove(ready)
            self.plan.put_back(ready[1])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the plan is replayed from the run's records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
