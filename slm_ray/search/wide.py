"""The costs of spaces whose choices are all model-wide: few enough to be written down, one table per hidden size."""

from __future__ import annotations

import numpy as np

from slm_ray.search.axes import IntArray
from slm_ray.search.sizing import Choice, CostModel
from slm_ray.search.totals import resize, totals_of

_TABLE = ("heads", "queries", "neurons", "layers")


class WideReach:
    """The costs a space with model-wide choices only can reach in one budget quantity."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._axes = cost.sizer.axes
        self._totals = {name: np.array(totals_of(axis), dtype=np.int64) for name, axis in self._axes.items()}

    def _table(self, hidden: int) -> IntArray:
        """``[heads, queries, neurons, layers]``: the cost of every combination at this hidden size."""
        rates = self._cost.rates(hidden)
        heads, queries, neurons, layers = (self._totals[name] for name in _TABLE)
        each = rates.heads[queries][None, :]
        attention = heads[:, None] * each + rates.attention * (heads[:, None] > 0)
        mlp = neurons * rates.neuron + rates.mlp * (neurons > 0)
        table = rates.base + (attention[:, :, None] + mlp)[..., None] * layers
        table += ((heads[:, None] == 0) * (rates.attention + each))[:, :, None, None]
        return np.asarray(table, dtype=np.int64)

    def nearest(self, choice: Choice, low: int, high: int) -> Choice | None:
        """A choice that costs ``low..high``, with the nearest counts; None if there is none."""
        now = {name: int(choice.mask(name)[0] @ axis.sizes) for name, axis in self._axes.items()}
        away = {name: np.abs(totals - now[name]) / totals[-1] for name, totals in self._totals.items()}
        nearest, counts = np.inf, None
        for place, hidden in enumerate(self._totals["hidden"].tolist()):
            table = self._table(hidden)
            found = np.nonzero((table >= low) & (table <= high))
            if not len(found[0]):
                continue
            distance = away["hidden"][place] + sum(away[name][at] for name, at in zip(_TABLE, found, strict=True))
            best = int(np.argmin(distance))
            if distance[best] < nearest:
                picks = {name: int(self._totals[name][at[best]]) for name, at in zip(_TABLE, found, strict=True)}
                nearest, counts = float(distance[best]), {"hidden": hidden, **picks}
        if counts is None:
            return None
        return Choice(**{n: resize(axis, choice.mask(n)[0], counts[n])[None, :] for n, axis in self._axes.items()})

    def around(self, low: int, high: int) -> tuple[int | None, int | None]:
        """The greatest reachable cost below ``low`` and the least above ``high``."""
        below: list[int] = []
        above: list[int] = []
        for hidden in self._totals["hidden"].tolist():
            table = self._table(hidden)
            below.extend(table[table < low].max(initial=-1, keepdims=True).ravel().tolist())
            above.extend(table[table > high].min(initial=np.iinfo(np.int64).max, keepdims=True).ravel().tolist())
        least, most = max(below), min(above)
        return (least if least >= 0 else None), (most if most < np.iinfo(np.int64).max else None)
