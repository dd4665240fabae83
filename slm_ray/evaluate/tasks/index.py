"""Every name that lm-eval knows, read from its files in half a second where its own index takes six to ten."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slm_ray.evaluate.tasks.harness import read_config, tasks_root

TASK, PYTHON, GROUP, TAG = "task", "python", "group", "tag"
# Most files are a few lines that say their task, tag and include in single words: these need no YAML parser.
_KEY = re.compile(rb"^[\"']?(task|group|class|tag|include)[\"']?[ \t]*:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_WORD = re.compile(rb"([\"']?)[A-Za-z_][\w./+-]*\1")
_SKIPPED = ("__pycache__", ".ipynb_checkpoints")


@dataclass
class Entry:
    """A name that lm-eval knows.

    Attributes:
        kind: ``task``, ``python`` (a task that is a class), ``group`` or ``tag``.
        file: Its YAML file, relative to lm-eval's tasks; empty for a tag.
        config: A group's file.
        tasks: A tag's tasks.
    """

    kind: str
    file: str = ""
    config: Mapping[str, Any] | None = None
    tasks: list[str] = field(default_factory=list)


@functools.cache
def task_index() -> Mapping[str, Entry]:
    """Every name that lm-eval knows, as ``TaskManager().task_index`` has them; a test compares some."""
    index: dict[str, Entry] = {}
    for file in sorted(_files(tasks_root()), key=Path.as_posix):  # of two files with one name, the first counts
        config = _merged(file)
        if config is None:
            continue
        name = file.relative_to(tasks_root()).as_posix()
        if "class" not in config and "group" in config:
            index.setdefault(str(config["group"]), Entry(GROUP, name, config))
        elif "task" in config and str(config["task"]) not in index:
            index[str(config["task"])] = Entry(PYTHON if "class" in config else TASK, name)
            tags = config.get("tag") or []
            for tag in [tags] if isinstance(tags, str) else tags:
                index.setdefault(tag, Entry(TAG)).tasks.append(str(config["task"]))
    for entry in index.values():
        entry.tasks.sort()
    return index


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        yield from (Path(folder, name) for name in names if name.endswith(".yaml"))


def _merged(file: Path) -> Mapping[str, Any] | None:
    """What a file and those that it includes say of names; None where it cannot be read, which lm-eval passes over."""
    try:
        words = _words(file)
        if words is None:
            return read_config(file.relative_to(tasks_root()).as_posix(), functions=False)
        included = _included(file.parent / words.pop("include")) if "include" in words else {}
        return None if included is None else {**included, **words}
    except (OSError, ValueError, yaml.YAMLError):
        return None


@functools.cache
def _included(file: Path) -> Mapping[str, Any] | None:
    return _merged(file)


def _words(file: Path) -> dict[str, str] | None:
    """What a file of single words says; None where it takes a parser."""
    found = dict(_KEY.findall(file.read_bytes()))
    if b"group" in found or not all(_WORD.fullmatch(value) for value in found.values()):
        return None
    return {key.decode(): value.decode().strip("\"'") for key, value in found.items()}
