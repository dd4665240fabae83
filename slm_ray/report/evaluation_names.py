"""Short names of models in an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

_GENERIC = "model"  # the folder of every trained model


def _parts(name: str) -> tuple[str, ...]:
    """A path's parts without the folder name that all trained models share; a name that is no path whole."""
    parts = PurePath(name).parts
    if len(parts) < 3 and not name.startswith(("/", "./", "../", "~")):
        return (name,)
    return parts[:-1] if parts[-1] == _GENERIC and len(parts) > 1 else parts


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of folders by as few of their last parts as tell them apart: ``winner-0.student``, ``winners/0``.

    Args:
        names: Folders, hub ids, and whatever else models are called.

    Returns:
        Name to short name; no two are the same.
    """
    parts = {name: _parts(name) for name in names}
    counts = {name: min(2 if found[-1].isdigit() else 1, len(found)) for name, found in parts.items()}
    while True:
        short = {name: "/".join(found[-counts[name] :]) for name, found in parts.items()}
        values = list(short.values())
        again = [n for n in parts if values.count(short[n]) > 1 and counts[n] < len(parts[n])]
        if not again:
            break
        for name in again:
            counts[name] += 1
    # Two names that are the same in all their parts but the generic one are shown as they are.
    return {name: name if values.count(found) > 1 else found for name, found in short.items()}


def names_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The short names of an evaluation's models; a peer's name has its model's short name in it."""
    names = [str(entry.get("name")) for entry in entries]
    of = {str(entry.get("name")): str(entry["of"]) for entry in entries if entry.get("of")}
    inside = {name for name, other in of.items() if other in name and other != name}
    short = short_names([name for name in dict.fromkeys(names) if name not in inside])
    return short | {name: name.replace(of[name], short.get(of[name], of[name])) for name in names if name in inside}
