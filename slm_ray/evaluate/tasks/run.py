"""One task measured on one model, through lm-eval's own evaluator."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.tasks.build import allows_unsafe_code, build_task, explained
from slm_ray.evaluate.tasks.harness import quiet, seed_like_the_command
from slm_ray.evaluate.tasks.plan import TaskPlan
from slm_ray.evaluate.tasks.record import make_record


def run_task(
    loaded: LoadedModel, tokenizer: Any, plan: TaskPlan, name: str, *, batch: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure a model on a task; the numbers are those of lm-eval's command line.

    Args:
        loaded: The model.
        tokenizer: Its tokenizer.
        plan: The tasks.
        name: One of ``plan.tasks``.
        batch: Sequences at once.
        say: Takes lines of progress, at least every ten seconds.

    Returns:
        The record of the task (docs/records.md).

    Raises:
        UserError: The task's data cannot be had or do not fit it or the model, or a package is missing.
    """
    from lm_eval.evaluator import evaluate

    from slm_ray.evaluate.tasks.model import task_model

    planned = plan.task(name)
    seed_like_the_command()
    task, model = build_task(planned), task_model(loaded, tokenizer)
    model.prepare(name, batch=batch, say=_aloud(say))
    with explained(planned, "could not be measured", documents_only=True), quiet():
        results = evaluate(
            lm=model, task_dict={"tasks": {name: task}, "groups": {}}, limit=planned.limit, log_samples=True,
            confirm_run_unsafe_code=allows_unsafe_code(),
        )  # fmt: skip
    if model.cut:
        reads = f"the model's {model.max_length} tokens"
        say(f"{name}: {model.cut} requests are longer than {reads}, and lm-eval cut their beginning")
    return make_record(planned, task, results, cut=model.cut)


def _aloud(say: Callable[[str], None]) -> Callable[[str], None]:
    """``say`` with the streams that are there now, for lm-eval's own output is kept away while it runs."""
    out, err = sys.stdout, sys.stderr

    def speak(text: str) -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            say(text)

    return speak
