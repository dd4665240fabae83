"""lm-eval's tasks by name: which of its folders define them, and a ``TaskManager`` of just these.

``TaskManager()`` reads 14,000 files, which takes ten seconds; looking for the names in them takes a fraction of one.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError
from slm_ray.evaluate.tasks.suites import SUITES

_DEFINITION = re.compile(rb"^[\"']?(?:task|group|tag)[\"']?[ \t]*:[ \t]*[\"']?([A-Za-z_][\w./+-]*)", re.MULTILINE)
_TAG_LIST = re.compile(rb"^[\"']?tag[\"']?[ \t]*:[ \t\r]*\n((?:[ \t]*-.*\n)+)", re.MULTILINE)
_TAG = re.compile(rb"-[ \t]*[\"']?([A-Za-z_][\w./+-]*)")
_NEAR = 3


def lm_eval_version() -> str:
    """The version that is installed."""
    return importlib.metadata.version("lm_eval")


@functools.cache
def tasks_root() -> Path:
    """The folder of lm-eval's own tasks.

    Raises:
        UserError: lm-eval is not installed.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed: install slm_ray with its dependencies, or `pip install lm-eval`")
    return Path(spec.origin).parent / "tasks"


@functools.cache
def catalogue() -> Mapping[str, tuple[str, ...]]:
    """Every name that lm-eval knows, with the folders (relative to its tasks) that define it, in order."""
    found: dict[str, dict[str, None]] = {}
    root = tasks_root()
    for folder, folders, files in sorted(os.walk(root)):
        folders.sort()
        relative = Path(folder).relative_to(root).as_posix()
        for file in files:
            if "yaml" not in file:
                continue
            text = (Path(folder) / file).read_bytes()
            names = _DEFINITION.findall(text) + [
                tag for block in _TAG_LIST.findall(text) for tag in _TAG.findall(block)
            ]
            for name in names:
                found.setdefault(name.decode(), {})[relative] = None
    return {name: tuple(places) for name, places in found.items()}


def unknown_task(name: str) -> UserError:
    """The error for a name that is neither a suite nor lm-eval's, with the nearest ones."""
    close = difflib.get_close_matches(name, [*SUITES, *catalogue()], n=_NEAR, cutoff=0.6)
    meant = f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""
    return UserError(
        f"--tasks: there is no task '{name}': {meant}Suites are {', '.join(SUITES)}; "
        f"`lm_eval ls tasks` lists those of lm-eval {lm_eval_version()}"
    )


def check_name(name: str) -> None:
    """Make sure that a name is a suite's or lm-eval's.

    Raises:
        UserError: It is neither.
    """
    if name not in SUITES and name not in catalogue():
        raise unknown_task(name)


@dataclass(frozen=True)
class Leaf:
    """A single task.

    Attributes:
        name: lm-eval's name.
        file: Its YAML file, relative to lm-eval's tasks; None for a task that only exists inside a group.
        config: What the file says, functions by their names, with what the group changes.
        owners: The groups and tags above it, nearest first.
        python: It is a class of its own, which reads its data itself.
    """

    name: str
    file: str | None
    config: Mapping[str, Any]
    owners: tuple[str, ...]
    python: bool = False


class Definition:
    """The definition of one name given to ``--tasks``."""

    def __init__(self, name: str) -> None:
        """Read the folders that define it and the members of its groups.

        Args:
            name: A task, group or tag of lm-eval.

        Raises:
            UserError: lm-eval has no such name.
        """
        if name not in catalogue():
            raise unknown_task(name)
        self.name = name
        self._folders: set[str] = set()
        read, missing = set[str](), {name}
        while missing:
            read |= missing
            self._folders |= {_common_folder(one) for one in missing}
            self.index = task_manager(self.folders).task_index
            inside = {leaf.name.rpartition("::")[2] for leaf in self._leaves(name, (), {}) if leaf.file is None}
            missing = (inside & catalogue().keys()) - read
        if name not in self.index:  # a file that lm-eval itself cannot read
            raise unknown_task(name)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders, relative to lm-eval's tasks; none lies inside another."""
        return tuple(
            folder for folder in sorted(self._folders, reverse=True)
            if not any(folder != other and Path(folder).is_relative_to(other) for other in self._folders)
        )  # fmt: skip

    def leaves(self) -> list[Leaf]:
        """Its single tasks, each once, in order."""
        found: dict[str, Leaf] = {}
        for leaf in self._leaves(self.name, (), {}):
            found.setdefault(leaf.name, leaf)
        return list(found.values())

    def _leaves(self, name: str, owners: tuple[str, ...], changes: Mapping[str, Any]) -> Iterator[Leaf]:
        entry = self.index.get(name)
        if entry is None:  # defined inside its group, or in a folder that was not read yet
            yield Leaf("::".join((*owners[:1], name)), None, changes, owners)
        elif entry.kind.name in ("GROUP", "TAG"):
            for child in _children(entry):
                yield from self._member(child, (name, *owners), changes)
        else:
            above = [
                one for one, other in self.index.items() if name in (other.tags if other.kind.name == "TAG" else ())
            ]
            file = entry.yaml_path.relative_to(tasks_root()).as_posix()
            everything = tuple(dict.fromkeys([*owners, *self._groups_of(name), *above]))
            yield Leaf(name, file, {**(entry.cfg or {}), **changes}, everything, entry.kind.name == "PY_TASK")

    def _member(self, child: Any, owners: tuple[str, ...], changes: Mapping[str, Any]) -> Iterator[Leaf]:
        if isinstance(child, str):
            yield from self._leaves(child, owners, changes)
        elif "group" in child and child["group"] not in self.index:
            for one in child.get("task") or ():
                yield from self._member(one, (f"{owners[0]}::{child['group']}", *owners), changes)
        else:
            own = {key: value for key, value in child.items() if key not in ("task", "group")}
            yield from self._leaves(str(child.get("group") or child.get("task")), owners, {**changes, **own})

    def _groups_of(self, name: str) -> list[str]:
        """The groups above a name in the folders that were read, nearest first."""
        found: list[str] = []
        level = [name]
        while level:
            level = [
                group for group, entry in self.index.items()
                if entry.kind.name == "GROUP" and group not in found
                and any(one in level for child in _children(entry) for one in _names_in(child))
            ]  # fmt: skip
            found += level
        return found

    def code_digest(self) -> str:
        """The digest of every file that may decide what its tasks ask."""
        root = tasks_root()
        files = [path for folder in self.folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
        return digest_json({
            path.relative_to(root).as_posix(): sha256_file(path) for path in files if "__pycache__" not in path.parts
        })  # fmt: skip


def _children(entry: Any) -> Sequence[Any]:
    """The members of a group or tag as they are written."""
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else ()
    return members if isinstance(members, list) else ()


def _names_in(child: Any) -> Iterator[str]:
    """The names that a member of a group mentions."""
    if isinstance(child, str):
        yield child
    elif isinstance(child, Mapping):
        name = child.get("group") or child.get("task")
        if isinstance(name, str):
            yield name
        members = child.get("task")
        for one in members if isinstance(members, list) else ():
            yield from _names_in(one)


def _common_folder(name: str) -> str:
    """The folder that a task or group is defined in; of a tag, the one that holds all of its tasks."""
    places = catalogue()[name]
    return Path(os.path.commonpath(places)).as_posix() if len(places) > 1 else places[0]


def task_manager(folders: Iterable[str], include: Path | None = None) -> Any:
    """lm-eval's ``TaskManager`` of some folders.

    Args:
        folders: Relative to lm-eval's tasks.
        include: A folder of task files that go before those of the same name.
    """
    with quiet():
        from lm_eval.tasks import TaskManager

        paths: list[str | Path] = [tasks_root() / folder for folder in folders]
        return TaskManager(include_defaults=False, include_path=[*paths, *([include] if include else [])])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and notes of lm-eval and datasets away; what goes wrong still comes as exceptions.

    Standard errors of metrics that are no means are bootstrapped in this process, not in forks of it: the numbers are
    the same, and a fork of a process with threads can hang.
    """
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
