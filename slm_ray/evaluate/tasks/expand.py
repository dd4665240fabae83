"""From the names a user gives to single tasks and the groups they are averaged in, without reading any task's data."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.evaluate.tasks.harness import lm_eval_version
from slm_ray.evaluate.tasks.index import GROUP, PYTHON, TAG, Entry
from slm_ray.evaluate.tasks.suites import SUITES

_NEAR = 3
# Keys of a group's file that are about the group; anything else in it changes its members (lm-eval's GroupConfig).
_GROUP_KEYS = frozenset({"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag", "include"})


@dataclass(frozen=True)
class Leaf:
    """A single task.

    Attributes:
        name: lm-eval's name.
        file: Its YAML file, relative to lm-eval's tasks; empty for a task that only exists inside a group.
        overrides: What a group changes in it.
        python: It is a class of its own, which reads its data itself.
    """

    name: str
    file: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    python: bool = False


@dataclass(frozen=True)
class Group:
    """Tasks that lm-eval averages.

    Attributes:
        name: lm-eval's name.
        alias: What it shows in its place.
        version: The group's version.
        aggregate: lm-eval's ``aggregate_metric_list``: metrics, filters, and whether larger tasks weigh more.
        members: The names of all single tasks in it.
    """

    name: str
    alias: str | None
    version: str
    aggregate: tuple[Mapping[str, Any], ...]
    members: tuple[str, ...]


def unknown_task(name: str, index: Mapping[str, Entry]) -> UserError:
    """The error for a name that is neither a suite nor lm-eval's, with the nearest ones."""
    close = difflib.get_close_matches(name, [*SUITES, *index], n=_NEAR, cutoff=0.6)
    meant = f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""
    return UserError(
        f"--tasks: there is no task '{name}': {meant}Suites are {', '.join(SUITES)}; "
        f"`lm_eval ls tasks` lists those of lm-eval {lm_eval_version()}"
    )


class Expansion:
    """Collects the tasks and groups behind names; follows lm-eval's own factory (``lm_eval/tasks/_factory.py``)."""

    def __init__(self, index: Mapping[str, Entry]) -> None:
        """Start with nothing.

        Args:
            index: Every name that lm-eval knows.
        """
        self._index = index
        self.leaves: dict[str, Leaf] = {}
        self.groups: dict[str, Group] = {}

    def add(self, name: str) -> tuple[str, ...]:
        """Add a task, group or tag.

        Returns:
            Its single tasks, in order.

        Raises:
            UserError: There is no such name, or two groups want the same task done differently.
        """
        if name not in self._index:
            raise unknown_task(name, self._index)
        return tuple(dict.fromkeys(self._of_name(name, {})))

    def _of_name(self, name: str, overrides: Mapping[str, Any]) -> Iterator[str]:
        entry = self._index[name]
        if entry.kind == TAG:
            for task in entry.tasks:
                yield from self._of_name(task, overrides)
        elif entry.kind == GROUP:
            yield from self._of_group(name, entry.config or {}, overrides)
        else:
            yield self._keep(Leaf(name, entry.file, overrides, entry.kind == PYTHON))

    def _keep(self, leaf: Leaf) -> str:
        known = self.leaves.setdefault(leaf.name, leaf)
        if known != leaf:
            raise UserError(
                f"--tasks: two of the groups given want task '{leaf.name}' done differently: evaluate them one by one"
            )
        return leaf.name

    def _of_group(self, name: str, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
        shared = {key: value for key, value in config.items() if key not in _GROUP_KEYS} | dict(overrides)
        members: list[str] = []
        items = config.get("task")
        for item in items if isinstance(items, list) else []:
            members += self._of_member(item, name, shared)
        members = list(dict.fromkeys(members))
        metrics = config.get("aggregate_metric_list") or []
        self.groups[name] = Group(
            name, config.get("group_alias"), str((config.get("metadata") or {}).get("version", "N/A")),
            tuple(metrics if isinstance(metrics, list) else [metrics]), tuple(members),
        )  # fmt: skip
        return members

    def _of_member(self, item: Any, group: str, shared: Mapping[str, Any]) -> list[str]:
        if isinstance(item, str):
            item = {"task": item}
        if "group" in item:
            name = item["group"]
            if name in self._index:
                return list(self._of_name(name, {**shared, **{key: item[key] for key in item if key != "group"}}))
            return self._of_group(f"{group}::{name}", item, shared)
        name, changes = item.get("task"), {key: value for key, value in item.items() if key != "task"}
        if not isinstance(name, str):
            raise UserError(
                f"--tasks: group '{group}' has a member without a name, which lm-eval cannot build: leave it out"
            )
        if name in self._index:
            return list(self._of_name(name, {**shared, **changes}))
        return [self._keep(Leaf(f"{group}::{name}", "", {**shared, **changes}))]


class Ancestry:
    """Which groups and tags tasks belong to."""

    def __init__(self, index: Mapping[str, Entry]) -> None:
        """Turn lm-eval's groups around.

        Args:
            index: Every name that lm-eval knows.
        """
        self._parents: dict[str, list[str]] = {}
        for name, entry in index.items():
            items = entry.tasks if entry.kind == TAG else (entry.config or {}).get("task") or ()
            for item in items if isinstance(items, list | tuple) else ():
                child = item if isinstance(item, str) else item.get("task") or item.get("group")
                if isinstance(child, str):
                    self._parents.setdefault(child, []).append(name)

    def of(self, name: str) -> tuple[str, ...]:
        """All groups and tags above a task, nearest first."""
        found: dict[str, None] = {}
        level = [name]
        while level:
            level = [above for child in level for above in self._parents.get(child, ()) if above not in found]
            found |= dict.fromkeys(level)
        return tuple(found)
