"""Which tasks an evaluation runs, and everything that decides their results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.evaluate.config import TasksConfig
from slm_ray.evaluate.tasks.catalogue import Definition, Leaf, lm_eval_version
from slm_ray.evaluate.tasks.check import check_local, check_rows
from slm_ray.evaluate.tasks.local_data import TaskData
from slm_ray.evaluate.tasks.local_rows import write_local
from slm_ray.evaluate.tasks.planned import UNSAFE, PlannedTask, allows_unsafe_code
from slm_ray.evaluate.tasks.suites import SUITES


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
            if task.name in wanted and not task.rows:
                task.load()


def plan_tasks(config: TasksConfig, out: Path) -> TaskPlan:
    """Find the tasks behind names, and make sure that local data fit them; no model is needed for that.

    Args:
        config: Suites, and lm-eval's tasks, groups and tags; a suite goes before a group of lm-eval's of the same name.
            With ``shots`` None a suite's, or a task's own number is taken; tasks whose file says 0 keep 0.
        out: Where local rows are written to.

    Raises:
        UserError: An unknown name, a task that runs unsafe code, two names that share a task, or local data that are
            missing or do not fit.
    """
    wanted: dict[str, int | None] = {}
    for name in config.tasks:
        for task, shots in SUITES[name].tasks.items() if name in SUITES else [(name, None)]:
            if wanted.get(task) is None:
                wanted[task] = shots
    data = TaskData(Path(config.task_data)) if config.task_data else None
    owners: dict[str, str] = {}
    planned = []
    for name, shots in wanted.items():
        definition = Definition(name)
        leaves = definition.leaves()
        for leaf in leaves:
            if other := owners.get(leaf.name):
                raise UserError(
                    f"--tasks: '{leaf.name}' is a task of both '{other}' and '{name}': leave one of them out"
                )
            owners[leaf.name] = name
            _refuse_unsafe(leaf)
        number = config.shots if config.shots is not None else shots
        planned.append(_planned(definition, leaves, number, config.limit, data, out))
    suites = {name: tuple(SUITES[name].tasks) for name in config.tasks if name in SUITES}
    return TaskPlan(tuple(planned), suites)


def _planned(
    definition: Definition, leaves: list[Leaf], shots: int | None, limit: int | None, data: TaskData | None, out: Path
) -> PlannedTask:
    splits = {leaf.name: (leaf, data.find(leaf, shots_of(leaf, shots))) for leaf in leaves} if data else {}
    settings = {
        "lm_eval": lm_eval_version(), "task": definition.name, "code": definition.code_digest(), "shots": shots,
        "limit": limit,
        "data": {name: {one.split: one.settings() for one in found} for name, (_, found) in splits.items()} or "hub",
    }  # fmt: skip
    shown = {name: ", ".join(dict.fromkeys(one.shown for one in found)) for name, (_, found) in splits.items()}
    rows = write_local(out, splits) if splits else None
    planned = PlannedTask(
        definition.name, shots, limit, definition.folders, {leaf.name: _dataset(leaf) for leaf in leaves}, shown,
        str(rows.resolve()) if rows else None, settings,
    )  # fmt: skip
    for name, (leaf, found) in splits.items():
        if not leaf.config.get("process_docs"):
            check_rows(leaf.config, name, found)
    if splits:
        loaded = planned.load()["tasks"]
        for name, (leaf, found) in splits.items():
            check_rows(leaf.config, name, found, loaded[name].features)
            check_local(loaded[name], planned, name, found)
    return planned


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
