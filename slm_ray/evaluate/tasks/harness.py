"""What of lm-eval lies below its public calls: its files, its seeds, its noise; only this module knows them."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slm_ray.config.digest import sha256_file
from slm_ray.config.errors import UserError


def lm_eval_version() -> str:
    """The version that is installed."""
    return importlib.metadata.version("lm_eval")


FUNCTION = "!function "


@functools.cache
def tasks_root() -> Path:
    """The folder of lm-eval's own tasks."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed: install slm_ray with its dependencies, or `pip install lm-eval`")
    return Path(spec.origin).parent / "tasks"


def read_config(file: str, *, functions: bool) -> dict[str, Any]:
    """A task's or group's YAML file with what it includes.

    Args:
        file: Relative to lm-eval's tasks.
        functions: Import the functions it names, which may raise ImportError; else their names stand there, relative to
            lm-eval's tasks and so the same on every machine.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    with quiet():
        config = dict(load_yaml(tasks_root() / file, resolve_func=functions))
    root = f"{tasks_root()}{os.sep}"
    return (
        config
        if functions
        else _mapped(config, lambda text: text.replace(root, FUNCTION, 1) if text.startswith(root) else text)
    )


def with_functions(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the functions that it names, which may raise ImportError.

    Args:
        config: Of :func:`read_config` without functions, or a part of it.
    """
    from lm_eval.tasks._yaml_loader import _import_fun_from_str

    def function(text: str) -> Any:
        return _import_fun_from_str(str(tasks_root() / text[len(FUNCTION) :])) if text.startswith(FUNCTION) else text

    with quiet():
        return _mapped(config, function)


def sources(config: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of the Python files that a config without functions names."""
    found = dict[str, str]()

    def note(text: str) -> str:
        module = text[len(FUNCTION) :].rpartition(".")[0] + ".py" if text.startswith(FUNCTION) else ""
        if module and (tasks_root() / module).is_file():
            found[module] = sha256_file(tasks_root() / module)
        return text

    _mapped(config, note)
    return dict(sorted(found.items()))


def _mapped(value: Any, change: Callable[[str], Any]) -> Any:
    """A config with every text in it changed, and nothing in it that JSON does not know but functions."""
    if isinstance(value, Mapping):
        return {str(key): _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_mapped(entry, change) for entry in value]
    if isinstance(value, str):
        return change(value)
    return value if isinstance(value, int | float | bool | None) or callable(value) else str(value)


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
