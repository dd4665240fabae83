"""Fronts and hypervolumes, by pymoo."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

Array = NDArray[np.float64]


def front_of(objectives: Array) -> list[int]:
    """Rows that no other row dominates, all objectives minimised; of equal rows the first.

    Args:
        objectives: ``[candidates, objectives]``, finite.

    Returns:
        Ascending row numbers.
    """
    if not len(objectives):
        return []
    _, first = np.unique(objectives, axis=0, return_index=True)
    rows = np.sort(first)
    best = NonDominatedSorting().do(objectives[rows], only_non_dominated_front=True)
    return sorted(int(rows[index]) for index in best)


def hypervolume(objectives: Array, ideal: ArrayLike, nadir: ArrayLike) -> float:
    """Share of the box between two points that a front dominates: 0 nothing, 1 all of it.

    Args:
        objectives: ``[candidates, objectives]``, all minimised.
        ideal: The best value of each objective.
        nadir: The worst value of each objective.
    """
    low, high = np.asarray(ideal, dtype=float), np.asarray(nadir, dtype=float)
    scaled = (objectives - low) / np.where(high > low, high - low, 1.0)
    inside = scaled[np.all(scaled < 1, axis=1)]
    if not len(inside):
        return 0.0
    return float(HV(ref_point=np.ones(objectives.shape[1]))(np.clip(inside, 0, 1)))
