"""Fronts and hypervolumes, by pymoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

Array = NDArray[np.float64]
T = TypeVar("T")


def front_of(objectives: Array) -> list[int]:
    """Rows that no other row dominates, all objectives minimised; of equal rows the first.

    ``objectives``: ``[candidates, objectives]``, finite.
    """
    if not len(objectives):
        return []
    _, first = np.unique(objectives, axis=0, return_index=True)
    rows = np.sort(first)
    best = NonDominatedSorting().do(objectives[rows], only_non_dominated_front=True)
    return sorted(int(rows[index]) for index in best)


class RunningFront(Generic[T]):
    """What :func:`front_of` finds among all that was added, in time that grows with the front alone."""

    def __init__(self) -> None:
        self._members: list[tuple[tuple[float, ...], int, T]] = []

    def add(self, values: Sequence[float], number: int, item: T) -> None:
        """Take one more."""
        new = tuple(values)
        for old, older, _ in self._members:
            if _covers(old, new) and not (old == new and number < older):
                return
        self._members = [member for member in self._members if not _covers(new, member[0])]
        self._members.append((new, number, item))

    def items(self) -> list[T]:
        """The front by its first objective."""
        return [item for _, _, item in sorted(self._members, key=lambda member: (member[0][0], member[1]))]


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether one is at least as good as the other in everything."""
    return all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def hypervolume(objectives: Array, ideal: ArrayLike, nadir: ArrayLike) -> float:
    """Share of the box between two points that a front dominates: 0 nothing, 1 all of it.

    ``objectives``: ``[candidates, objectives]``, all minimised.
    """
    low, high = np.asarray(ideal, dtype=float), np.asarray(nadir, dtype=float)
    scaled = (objectives - low) / np.where(high > low, high - low, 1.0)
    inside = scaled[np.all(scaled < 1, axis=1)]
    if not len(inside):
        return 0.0
    return float(HV(ref_point=np.ones(objectives.shape[1]))(np.clip(inside, 0, 1)))
