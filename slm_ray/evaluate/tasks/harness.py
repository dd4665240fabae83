"""What of lm-eval lies below its public calls: its index of names, its files, its noise; only this module knows."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import logging
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.core.digest import digest_json, sha256_file
from slm_ray.core.errors import UserError
from slm_ray.core.files import cache_folder, read_json, write_json

TASK, PYTHON, GROUP, TAG = "task", "python", "group", "tag"
_CACHE = "lm-eval"


@dataclass(frozen=True)
class Entry:
    """A name that lm-eval knows.

    Attributes:
        kind: ``task``, ``python`` (a task that is a class), ``group`` or ``tag``.
        file: Its YAML file, relative to lm-eval's tasks; empty for a tag.
        config: A group's file, functions as paths.
        tasks: A tag's tasks.
    """

    kind: str
    file: str = ""
    config: Mapping[str, Any] | None = None
    tasks: tuple[str, ...] = ()


def lm_eval_version() -> str:
    """The version that is installed."""
    return importlib.metadata.version("lm_eval")


@functools.cache
def tasks_root() -> Path:
    """The folder of lm-eval's own tasks."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed: install slm_ray with its dependencies, or `pip install lm-eval`")
    return Path(spec.origin).parent / "tasks"


def _files_digest() -> str:
    """Changes when lm-eval's task files do: looking at their dates takes 0.2 s, reading them 6 to 10 s."""
    found: list[tuple[str, int, int]] = []
    for folder, folders, names in os.walk(tasks_root()):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".yaml"):
                status = os.stat(os.path.join(folder, name))
                found.append(
                    (os.path.relpath(os.path.join(folder, name), tasks_root()), status.st_mtime_ns, status.st_size)
                )
    return digest_json([lm_eval_version(), found])


def task_index() -> Mapping[str, Entry]:
    """Every name that lm-eval knows; read once per installation and kept in the cache."""
    return _index(_files_digest())


@functools.lru_cache(maxsize=1)
def _index(digest: str) -> Mapping[str, Entry]:
    file = cache_folder() / _CACHE / f"index-{digest}.json"
    if file.is_file():
        return {name: Entry(kind, path, config, tuple(tasks)) for name, kind, path, config, tasks in read_json(file)}
    index = _read_index()
    write_json(file, [[name, entry.kind, entry.file, entry.config, entry.tasks] for name, entry in index.items()])
    return index


def _read_index() -> dict[str, Entry]:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    kinds = {Kind.TASK: TASK, Kind.PY_TASK: PYTHON, Kind.GROUP: GROUP, Kind.TAG: TAG}
    with quiet():
        found = TaskManager().task_index
    index = {}
    for name, entry in found.items():
        kind = kinds[entry.kind]
        file = entry.yaml_path.relative_to(tasks_root()).as_posix() if entry.yaml_path else ""
        index[name] = Entry(
            kind, file, entry.cfg if kind == GROUP else None, tuple(sorted(entry.tags)) if kind == TAG else ()
        )
    return index


def read_config(file: str, *, functions: bool) -> dict[str, Any]:
    """A task's YAML file with what it includes.

    Args:
        file: Relative to lm-eval's tasks.
        functions: Import the functions it names; else their names stand there, as paths.

    Raises:
        UserError: A function's module needs a package that is not installed.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        with quiet():
            return dict(load_yaml(tasks_root() / file, resolve_func=functions))
    except ImportError as error:
        raise _missing_package(Path(file).stem, error) from error


def _missing_package(task: str, error: ImportError) -> UserError:
    package = error.name or str(error)
    return UserError(
        f"task '{task}' needs the package '{package}', which is not installed: install it, or leave the task out"
    )


def plain_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A config read without functions, the same on every machine, and the digests of the Python files it names.

    Args:
        config: From :func:`read_config`.

    Returns:
        The config with paths relative to lm-eval's tasks; file to SHA-256.
    """
    root, sources = f"{tasks_root()}{os.sep}", dict[str, str]()

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple | set):
            return [plain(entry) for entry in value]
        if isinstance(value, str) and value.startswith(root):
            name = value[len(root) :]
            module = tasks_root() / (name.rpartition(".")[0] + ".py")
            if module.is_file():
                sources[module.relative_to(tasks_root()).as_posix()] = sha256_file(module)
            return f"!function {name}"
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    return plain(config), dict(sorted(sources.items()))


def build(config: Mapping[str, Any]) -> Any:
    """lm-eval's Task object of a config whose functions are imported; its data are read.

    Args:
        config: From :func:`read_config`, perhaps changed.
    """
    from lm_eval.tasks import TaskManager

    [task] = TaskManager(include_defaults=False).load([dict(config)])["tasks"].values()
    return task


def seed_like_the_command() -> None:
    """Set every seed to what lm-eval's command line sets it to by default."""
    import numpy as np
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.utils import set_torch_seed

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)


def few_shot_seed() -> int:
    """The seed of few-shot examples that lm-eval's command line takes by default."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    return int(DEFAULT_OTHER_SEED)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's and datasets' bars and notes away; what goes wrong still comes as exceptions.

    Standard errors of metrics that are no means are bootstrapped in this process, not in forks of it: the numbers are
    the same, and a fork of a process with threads can hang.
    """
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
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
