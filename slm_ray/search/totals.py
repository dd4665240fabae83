"""How many units a row of an axis can keep, and the mask that keeps that many."""

from __future__ import annotations

import numpy as np

from slm_ray.search.axes import BoolArray, BoundAxis


def totals_of(axis: BoundAxis) -> list[int]:
    """Every number of units a row of an axis can keep, ascending; only full blocks, or the smaller last one too."""
    if not axis.free:
        return [int(axis.sizes.sum())]
    if axis.prefix:
        return [int(axis.sizes[:count].sum()) for count in range(axis.least, axis.blocks + 1)]
    step, last = int(axis.sizes[0]), int(axis.sizes[-1])
    without = [count * step for count in range(axis.least, axis.blocks)]
    with_last = [(count - 1) * step + last for count in range(max(axis.least, 1), axis.blocks + 1)]
    return sorted({*without, *with_last})


def resize(axis: BoundAxis, row: BoolArray, total: int) -> BoolArray:
    """The mask ``[blocks]`` that keeps ``total`` units, as near to ``row`` as can be."""
    if axis.prefix:
        count = int(np.searchsorted(np.cumsum(axis.sizes), total)) + 1 if total else 0
        return np.asarray(np.arange(axis.blocks) < count)
    step, last = int(axis.sizes[0]), int(axis.sizes[-1])
    body, uses_last = axis.blocks, False
    if last != step:
        body, uses_last = axis.blocks - 1, total % step != 0
    mask = row.copy()
    mask[body:] = uses_last
    kept, missing = np.flatnonzero(mask[:body]), np.flatnonzero(~mask[:body])
    count = (total - last * uses_last) // step
    mask[kept[count:]] = False
    mask[missing[: max(count - len(kept), 0)]] = True
    return mask
