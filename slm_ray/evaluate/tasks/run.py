"""One name of lm-eval measured on one model, through lm-eval's own evaluator."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.tasks.catalogue import quiet
from slm_ray.evaluate.tasks.figures import group_figures, task_figures
from slm_ray.evaluate.tasks.planned import PlannedTask, allows_unsafe_code, explained
from slm_ray.records.files import cache_folder
from slm_ray.records.measurement import TaskRecord


def run_task(
    loaded: LoadedModel, tokenizer: Any, planned: PlannedTask, header: Mapping[str, Any], *, batch: int,
    say: Callable[[str], None],
) -> TaskRecord:  # fmt: skip
    """Measure a model on a task, or on all tasks of a group; the numbers are those of lm-eval's command line.

    It is lm-eval's ``evaluate`` with what ``simple_evaluate`` does around it, but for calling pip and git to describe
    the machine, which takes seconds each time. Responses are kept in lm-eval's own cache until all are there, so that
    an interrupted measurement goes on where it was.

    Args:
        loaded: The model.
        tokenizer: Its tokenizer.
        planned: The task.
        header: The fields that every record begins with.
        batch: Sequences at once.
        say: Takes lines of progress, at least every ten seconds.

    Raises:
        UserError: The task's data cannot be had or do not fit it or the model, or a package is missing.
    """
    from lm_eval import evaluate
    from lm_eval.api.model import CachingLM

    from slm_ray.evaluate.tasks.model import TaskModel

    _seed_like_the_command()
    tasks = planned.load()
    model = TaskModel(loaded, tokenizer, planned.name, batch=batch, say=_aloud(say))
    responses = cache_folder() / "responses" / f"{header['key']}.db"
    with explained(planned, "could not be measured", documents_only=True), quiet():
        caching = CachingLM(model, str(responses))
        try:
            results = evaluate(
                lm=caching, task_dict=tasks, limit=planned.limit, log_samples=True,
                confirm_run_unsafe_code=allows_unsafe_code(),
            )  # fmt: skip
        finally:
            caching.dbdict.close()
    if model.cut:
        reads = f"the model's {model.max_length} tokens"
        say(f"{planned.name}: {model.cut} requests are longer than {reads}, and lm-eval cut their beginning")
    record = _record(planned, tasks, results, header, model.cut)
    _forget(responses)
    return record


def _record(
    planned: PlannedTask, tasks: Mapping[str, Any], results: Mapping[str, Any], header: Mapping[str, Any], cut: int
) -> TaskRecord:
    figures, values = {}, {}
    for name, task in tasks["tasks"].items():
        figures[name], values[name] = task_figures(planned, name, task, results)
    groups = [group_figures(group, results, figures) for group in tasks.get("groups", {}).values()]
    rows = (*figures.values(), *(group for group in groups if group is not None))
    return TaskRecord(**header, tasks=rows, values=values, cut_requests=cut)


def _forget(responses: Path) -> None:
    """Remove a cache of responses with the files that SQLite puts beside it."""
    for file in responses.parent.glob(f"{responses.name}*"):
        file.unlink(missing_ok=True)


def _seed_like_the_command() -> None:
    """Set every seed to what lm-eval's command line sets it to by default."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.utils import set_torch_seed

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)


def _aloud(say: Callable[[str], None]) -> Callable[[str], None]:
    """``say`` with the streams that are there now, for lm-eval's own output is kept away while it runs."""
    out, err = sys.stdout, sys.stderr

    def speak(text: str) -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            say(text)

    return speak
