"""YAML as plain data, from whoever wrote it."""

from __future__ import annotations

from typing import Any

import yaml

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
