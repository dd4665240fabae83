"""Which tasks an evaluation runs, and everything that decides their results: made once, rebuilt by every worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.evaluate.tasks.build import PlannedTask, build_task, read_leaf, refuse_unsafe
from slm_ray.evaluate.tasks.check import check_local
from slm_ray.evaluate.tasks.expand import Expansion, Group, Leaf
from slm_ray.evaluate.tasks.harness import lm_eval_version, sources
from slm_ray.evaluate.tasks.index import task_index
from slm_ray.evaluate.tasks.layout import TaskData
from slm_ray.evaluate.tasks.suites import SUITES


@dataclass(frozen=True)
class TaskPlan:
    """The tasks of an evaluation.

    Attributes:
        lm_eval: lm-eval's version.
        planned: Every single task, in order.
        groups: lm-eval's groups among the names asked for, and those inside them: name to group.
        suites: The suites asked for, and the names in them.
    """

    lm_eval: str
    planned: tuple[PlannedTask, ...]
    groups: Mapping[str, Group]
    suites: Mapping[str, tuple[str, ...]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the single tasks, in order."""
        return tuple(self._by_name)

    @cached_property
    def _by_name(self) -> Mapping[str, PlannedTask]:
        return {one.name: one for one in self.planned}

    def task(self, name: str) -> PlannedTask:
        """One of the tasks."""
        return self._by_name[name]

    def settings(self, name: str) -> dict[str, Any]:
        """All that decides a task's result besides the model; equal settings, equal result.

        Args:
            name: One of :attr:`tasks`.
        """
        return dict(self.task(name).settings)

    def only(self, name: str) -> TaskPlan:
        """The plan of one task alone: all that a worker needs for it.

        Args:
            name: One of :attr:`tasks`.
        """
        return TaskPlan(self.lm_eval, (self.task(name),), {}, {})

    def check_downloads(self, names: Iterable[str]) -> None:
        """Fetch the data of tasks that come from the hub, so that an evaluation does not stop half-way for them.

        Args:
            names: Some of :attr:`tasks`: those that are still to be measured.

        Raises:
            UserError: The data of a task cannot be had.
        """
        for name in names:
            if not self.task(name).data:
                build_task(self.task(name))

    def to_json(self) -> dict[str, Any]:
        """For a worker, or a record."""
        return {
            "lm_eval": self.lm_eval,
            "tasks": [one.to_json() for one in self.planned],
            "groups": [asdict(group) for group in self.groups.values()],
            "suites": {name: list(names) for name, names in self.suites.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TaskPlan:
        """The inverse of :meth:`to_json`.

        Raises:
            UserError: It was made with another version of lm-eval than this machine's.
        """
        if value["lm_eval"] != lm_eval_version():
            raise UserError(
                f"this machine has lm-eval {lm_eval_version()} and the tasks were planned with {value['lm_eval']}: "
                "install the same version on all machines"
            )
        groups = [
            Group(**{**one, "aggregate": tuple(one["aggregate"]), "members": tuple(one["members"])})
            for one in value["groups"]
        ]
        planned = tuple(PlannedTask.from_json(one) for one in value["tasks"])
        suites = {name: tuple(names) for name, names in value["suites"].items()}
        return cls(value["lm_eval"], planned, {group.name: group for group in groups}, suites)


def plan_tasks(names: Sequence[str], *, task_data: Path | None, shots: int | None, limit: int | None) -> TaskPlan:
    """Find the tasks behind names, and make sure that local data fit them; no model is needed for that.

    Args:
        names: Suites, and lm-eval's tasks, groups and tags. A suite goes before a group of lm-eval's of the same name.
        task_data: Folder of local data, for all of the tasks; None takes them from the hub when they are run.
        shots: Examples before each question; None takes the suite's, or the task's own number. A task whose file says 0
            keeps 0, as with lm-eval.
        limit: First documents of each task only; None for all.

    Raises:
        UserError: An unknown name, a task that runs unsafe code, or local data that are missing or do not fit.
    """
    index = task_index()
    data = TaskData(task_data, index) if task_data else None
    expansion, wanted = Expansion(index), dict[str, int | None]()
    for name, number in _spelled_out(names):
        for task in expansion.add(name):
            if wanted.get(task) is None:
                wanted[task] = number
    version = lm_eval_version()
    planned = tuple(_planned(expansion.leaves[task], shots if shots is not None else number, limit, data, version)
                    for task, number in wanted.items())  # fmt: skip
    for one in planned:
        if one.data:
            check_local(one)
    suites = {name: tuple(SUITES[name].tasks) for name in names if name in SUITES}
    return TaskPlan(version, planned, expansion.groups, suites)


def _spelled_out(names: Sequence[str]) -> Iterator[tuple[str, int | None]]:
    """Tasks and groups in the order given, with the examples that a suite wants; no two suites disagree."""
    for name in names:
        yield from SUITES[name].tasks.items() if name in SUITES else [(name, None)]


def _planned(leaf: Leaf, shots: int | None, limit: int | None, data: TaskData | None, version: str) -> PlannedTask:
    config = read_leaf(leaf, functions=False)
    refuse_unsafe(leaf.name, config)
    own = config.get("num_fewshot")
    number = 0 if own == 0 else shots if shots is not None else own or 0
    splits = data.find(leaf, config, number) if data else ()
    settings = {
        "lm_eval": version, "task": leaf.name, "config": config, "functions": sources(config), "shots": number,
        "limit": limit, "data": {one.split: one.settings() for one in splits} if splits else "hub",
    }  # fmt: skip
    return PlannedTask(leaf, number, limit, splits, settings)
