"""lm-eval's tasks planned from ``--tasks``, and one of them measured on one model by lm-eval's own evaluator."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import TasksConfig
from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.task_data import UNSAFE, PlannedTask, allows_unsafe_code, explained, find_local
from slm_ray.evaluate.task_figures import group_figures, task_figures
from slm_ray.evaluate.tasks import SUITES, Definition, Leaf, lm_eval_version, quiet
from slm_ray.records.files import cache_folder
from slm_ray.records.measurement import TaskRecord


@dataclass(frozen=True)
class TaskPlan:
    """The tasks of an evaluation, and the suites among the names given."""

    tasks: tuple[PlannedTask, ...]
    suites: dict[str, tuple[str, ...]]

    def check_downloads(self, names: Iterable[str]) -> None:
        """Fetch the data of tasks that come from the hub, so that an evaluation does not stop half-way for them.

        Args:
            names: Those of the tasks that are still to be measured.

        Raises:
            UserError: The data of a task cannot be had.
        """
        wanted = set(names)
        for task in self.tasks:
            if task.name in wanted and not task.is_local:
                task.load()


def plan_tasks(config: TasksConfig) -> TaskPlan:
    """Find the tasks behind names, and load those with local data; no model is needed for that.

    Args:
        config: Suites, and lm-eval's tasks, groups and tags; a suite goes before a group of lm-eval's of the same name.
            With ``shots`` None a suite's, or a task's own number is taken; tasks whose file says 0 keep 0.

    Raises:
        UserError: An unknown name, a task that runs unsafe code, two names that share a task, or local data that are
            missing or do not fit.
    """
    wanted: dict[str, int | None] = {}
    for name in config.tasks:
        for task, shots in SUITES[name].tasks.items() if name in SUITES else [(name, None)]:
            if wanted.get(task) is None:
                wanted[task] = shots
    folder = Path(config.task_data).expanduser().resolve() if config.task_data else None
    owners: dict[str, str] = {}
    planned = []
    for name, shots in wanted.items():
        definition = Definition(name, folder)
        leaves = definition.leaves()
        for leaf in leaves:
            if other := owners.get(leaf.name):
                raise UserError(
                    f"--tasks: '{leaf.name}' is a task of both '{other}' and '{name}': leave one of them out"
                )
            owners[leaf.name] = name
            _refuse_unsafe(leaf)
        planned.append(_planned(definition, leaves, config.shots if config.shots is not None else shots, config.limit))
    if folder and not any(task.local for task in planned):
        raise UserError(
            f"--task-data {folder} has nothing for these tasks: put the documents of '{next(iter(owners))}' into "
            f"{next(iter(owners))}.jsonl, or a task file of lm-eval's there (docs/tasks.md)"
        )
    for one in planned:
        if one.is_local:
            for task_name, task in one.load()["tasks"].items():
                _check_fields(task_name, task, one)
    return TaskPlan(tuple(planned), {name: tuple(SUITES[name].tasks) for name in config.tasks if name in SUITES})


def _planned(definition: Definition, leaves: list[Leaf], shots: int | None, limit: int | None) -> PlannedTask:
    folder = definition.include
    found = {leaf.name: find_local(folder, leaf, shots_of(leaf, shots)) for leaf in leaves} if folder else {}
    local = {name: task for name, task in found.items() if task is not None}
    data = {name: task.digests(folder) for name, task in local.items()} if folder and local else "hub"
    settings = {
        "lm_eval": lm_eval_version(), "task": definition.name, "code": definition.code_digest(), "shots": shots,
        "limit": limit, "data": data,
    }  # fmt: skip
    return PlannedTask(
        definition.name, shots, limit, definition.folders, {leaf.name: _dataset(leaf) for leaf in leaves}, local,
        str(folder) if folder else None, settings,
    )  # fmt: skip


def _check_fields(name: str, task: Any, planned: PlannedTask) -> None:
    """Refuse a row without a field of the prompt: lm-eval would write ``None`` there."""
    templates = " ".join(str(task.get_config(key)) for key in ("doc_to_text", "doc_to_target", "doc_to_choice"))
    table = task.eval_docs.data
    for field in table.column_names:
        nulls = table.column(field).is_null().to_pylist()
        if field in templates and any(nulls) and not all(nulls):
            where = f"row {nulls.index(True) + 1} of {planned.local[name].names()[0]} has nothing in it"
            raise UserError(f"--task-data: task '{name}' needs the field '{field}', and {where}")


def shots_of(leaf: Leaf, shots: int | None) -> int:
    """Examples before each question of a task: 0 where its file says 0, as with lm-eval."""
    own = leaf.config.get("num_fewshot")
    return 0 if own == 0 else shots if shots is not None else own or 0


def _refuse_unsafe(leaf: Leaf) -> None:
    if leaf.config.get("unsafe_code") and not allows_unsafe_code():
        raise UserError(
            f"task '{leaf.name}' runs programs that the model writes: set {UNSAFE}=1 to allow that, or leave it out"
        )
    if leaf.config.get("doc_to_image") or leaf.config.get("doc_to_audio"):
        raise UserError(f"task '{leaf.name}' needs a model that sees or hears, and these read text only: leave it out")


def _dataset(leaf: Leaf) -> str:
    path, name = leaf.config.get("dataset_path"), leaf.config.get("dataset_name")
    return (f"the dataset {path}" + (f" ({name})" if name else "")) if path else "its own dataset"


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

    from slm_ray.evaluate.task_model import TaskModel

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
