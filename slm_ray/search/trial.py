"""One candidate as a Ray Tune trial, on an actor that is reused from trial to trial."""

from __future__ import annotations

import json
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from slm_ray.config.redact import redact
from slm_ray.search.evaluator import Evaluator, EvaluatorSettings
from slm_ray.search.plan import SearchPlan
from slm_ray.search.race import Rival
from slm_ray.search.stack import GenomeStack
from slm_ray.search.tasks import Idle, Outcome

_MOST_ERROR_CHARACTERS = 300


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
            outcome = self._evaluator.evaluate(spec, rival).rounded()
            answer: dict[str, Any] = {"outcome": outcome.to_json(), "error": None}
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
        self._tasks: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it was given, to restore it some day; we resume from the run's records instead."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """A task; None at a generation's end while others still run; FINISHED when all is done."""
        if self.fatal is not None:
            return Searcher.FINISHED
        try:
            task = self.plan.next()
        except Exception as error:
            self.fatal = error
            return Searcher.FINISHED
        if isinstance(task, Idle):
            return Searcher.FINISHED if task is Idle.DONE else None
        self._tasks[trial_id] = task.index
        rival = None if task.rival is None else task.rival.blocks
        return {"job": json.dumps({"trial": task.index, "genes": task.genes, "rival": rival})}

    def excuse(self, trial_id: str) -> None:
        """Take a trial's failure for its worker's alone."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hand the candidate's outcome to the plan, or give it back where its worker died."""
        index = self._tasks.pop(trial_id, None)
        if index is None or self.fatal is not None:
            return
        answer = json.loads(result["answer"]) if result and "answer" in result and not error else None
        try:
            if answer is None or answer.get("again"):
                said = "the worker died again and again while measuring this candidate"
                self.plan.give_back(index, answer["error"] if answer else said)
            else:
                outcome = answer["outcome"] and Outcome.model_validate(answer["outcome"])
                self.plan.finish(index, outcome, answer["error"])
        except Exception as problem:
            self.fatal = problem

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the plan is replayed from the run's records."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
