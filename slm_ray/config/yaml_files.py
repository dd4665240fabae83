"""YAML files as plain data, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from slm_ray.config.errors import UserError

_MOST_VALUES = 1_000_000


def plain_yaml(text: str) -> Any:
    """Plain data from YAML: no objects, and no aliases that grow without end.

    A few lines of aliases of aliases stand for more values than fit into any memory ("billion laughs"); the first thing
    that prints, copies or digests them would never end.

    Raises:
        yaml.YAMLError: It is not YAML, asks for objects, or stands for too much.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    if _count(value, {}) > _MOST_VALUES:
        raise yaml.YAMLError(f"its aliases stand for over {_MOST_VALUES:,} values")
    return value


def _count(value: Any, known: dict[int, int]) -> int:
    """Values in it, those of an alias as often as it is used; one that holds itself counts as too many."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES + 1  # for as long as it is being counted
        entries = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(entry, known) for entry in entries)
    return known[id(value)]


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain data."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not a YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from error


def parse_yaml(text: str, source: str) -> Any:
    """Plain data from YAML."""
    try:
        return plain_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{source} is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error
