"""Which costs a space can reach exactly, and the choice nearest to a given one in a range.

Greedy steps settle almost any choice in almost any range. Where they cannot (a range narrower than a block, a space
whose sizes lie far apart), this finds a choice if there is one at all, and the nearest costs if there is none.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.search.axes import BoolArray, BoundAxis, IntArray
from slm_ray.search.sizes import Choice, CostModel

IsPlain = Callable[[Architecture], bool]
_MODEL_WIDE = ("hidden", "heads", "queries", "neurons")


class WideReach:
    """Spaces whose choices are all model-wide: few enough to be written down, one table per hidden size."""

    _TABLE = ("heads", "queries", "neurons", "layers")

    def __init__(self, axes: Mapping[str, BoundAxis], cost: CostModel) -> None:
        self._axes, self._cost = axes, cost
        self._totals = {name: np.array(axis.totals(), dtype=np.int64) for name, axis in axes.items()}

    def _table(self, hidden: int) -> IntArray:
        """``[heads, queries, neurons, layers]``: the cost of every combination at this hidden size."""
        rates = self._cost.rates(hidden)
        heads, queries, neurons, layers = (self._totals[name] for name in self._TABLE)
        each = rates.heads[0, queries][None, :]
        attention = heads[:, None] * each + rates.attention * (heads[:, None] > 0)
        mlp = neurons * rates.neuron + rates.mlp * (neurons > 0)
        table = rates.base + (attention[:, :, None] + mlp)[..., None] * layers
        table += ((heads[:, None] == 0) * (rates.attention + each))[:, :, None, None]
        return np.asarray(table, dtype=np.int64)

    def nearest(self, choice: Choice, low: int, high: int, is_plain: IsPlain | None = None) -> Choice | None:
        """The choice with the nearest numbers of units; with ``is_plain``, of those whose sizes it accepts."""
        now = {name: int(choice.masks[name][0] @ axis.sizes) for name, axis in self._axes.items()}
        away = {name: np.abs(totals - now[name]) / totals[-1] for name, totals in self._totals.items()}
        nearest, counts = np.inf, None
        for place, hidden in enumerate(self._totals["hidden"].tolist()):
            table = self._table(hidden)
            fits = (table >= low) & (table <= high)
            if is_plain is not None:
                fits &= self._plain_heads(hidden, is_plain)[:, :, None, None]
            found = np.nonzero(fits)
            if not len(found[0]):
                continue
            distance = away["hidden"][place] + sum(
                away[name][at] for name, at in zip(self._TABLE, found, strict=True)
            )
            best = int(np.argmin(distance))
            if distance[best] < nearest:
                picks = {name: int(self._totals[name][at[best]]) for name, at in zip(self._TABLE, found, strict=True)}
                nearest, counts = float(distance[best]), {"hidden": hidden, **picks}
        if counts is None:
            return None
        masks = {n: axis.resize(choice.masks[n][0], counts[n])[None, :] for n, axis in self._axes.items()}
        return Choice(self._axes, masks)

    def _plain_heads(self, hidden: int, is_plain: IsPlain) -> BoolArray:
        """``[heads, queries]``: which numbers of heads go with a hidden size."""
        structure, neurons = self._cost.teacher.structure, self._cost.teacher.layers[0].intermediate_size
        heads, queries = self._totals["heads"].tolist(), self._totals["queries"].tolist()
        shapes = [[LayerShape(count * each, count, neurons) for each in queries] for count in heads]
        return np.array([[is_plain(Architecture(structure, hidden, (one,))) for one in row] for row in shapes])

    def around(self, low: int, high: int) -> tuple[int | None, int | None]:
        """The greatest reachable cost below ``low`` and the least above ``high``."""
        tables = [self._table(hidden) for hidden in self._totals["hidden"].tolist()]
        below = [int(table[table < low].max()) for table in tables if (table < low).any()]
        above = [int(table[table > high].min()) for table in tables if (table > high).any()]
        return max(below, default=None), min(above, default=None)


@dataclass(frozen=True)
class _Setting:
    """Model-wide sizes; None where each layer chooses for itself."""

    hidden: int
    heads: int | None
    queries: int | None
    neurons: int | None


class LayeredReach:
    """Spaces with choices per layer: sums over layers, each of which takes one of a few costs."""

    def __init__(self, axes: Mapping[str, BoundAxis], cost: CostModel) -> None:
        self._axes, self._cost = axes, cost
        self._totals = {name: axis.totals() for name, axis in axes.items()}

    def nearest(self, choice: Choice, low: int, high: int) -> Choice | None:
        """A choice that costs ``low..high``, near the given one; None if there is none."""
        sizes = choice.sizes()
        attention, mlp = (int(part[sizes.kept].sum()) for part in self._cost.sublayers(sizes))
        for setting in self._settings(choice):
            base = self._cost.rates(setting.hidden).base
            parts = self._sublayers(setting)
            for layers in sorted(self._totals["layers"], key=lambda count: abs(count - int(sizes.kept.sum()))):
                pair = _pair(parts[0].totals(layers), parts[1].totals(layers), low - base, high - base, attention, mlp)
                if pair:
                    return self._build(choice, setting, layers, parts, pair)
        return None

    def around(self, low: int, high: int) -> tuple[int | None, int | None]:
        """The greatest reachable cost below ``low`` and the least above ``high``."""
        below, above = list[int](), list[int]()
        for setting in self._settings(None):
            base = self._cost.rates(setting.hidden).base
            attention, mlp = self._sublayers(setting)
            for layers in self._totals["layers"]:
                first, second = attention.totals(layers), mlp.totals(layers)
                under = np.searchsorted(second, low - base - first, side="left") - 1
                over = np.searchsorted(second, high - base - first, side="right")
                below += (base + first[under >= 0] + second[under[under >= 0]]).tolist()
                above += (base + first[over < len(second)] + second[over[over < len(second)]]).tolist()
        return max(below, default=None), min(above, default=None)

    def _settings(self, choice: Choice | None) -> Iterator[_Setting]:
        """All model-wide sizes, those nearest to a choice's first."""
        options: list[list[int | None]] = []
        for name in _MODEL_WIDE:
            axis = self._axes[name]
            wide: list[int | None] = [None] if axis.per_layer else [*self._totals[name]]
            if choice is not None and not axis.per_layer:
                now = int(choice.masks[name][0] @ axis.sizes)
                wide.sort(key=lambda total, now=now: abs((total or 0) - now))  # type: ignore[misc]
            options.append(wide)
        settings = itertools.product(*(enumerate(wide) for wide in options))
        ordered = settings if choice is None else sorted(settings, key=lambda picks: sum(place for place, _ in picks))
        for picks in ordered:
            hidden, heads, queries, neurons = (total for _, total in picks)
            yield _Setting(hidden or 0, heads, queries, neurons)

    def _sublayers(self, setting: _Setting) -> tuple[_Sublayer, _Sublayer]:
        rates = self._cost.rates(setting.hidden)
        queries = self._totals["queries"][-1] if setting.queries is None else setting.queries
        rescue = rates.attention + int(rates.heads[0, queries])
        heads = self._totals["heads"] if setting.heads is None else [setting.heads]
        neurons = self._totals["neurons"] if setting.neurons is None else [setting.neurons]
        mlp = tuple(units * rates.neuron for units in neurons if units * rates.neuron)
        return (
            _Sublayer(tuple(self._head_costs(setting)), rates.attention, 0 in heads, rescue),
            _Sublayer(mlp, rates.mlp, 0 in neurons),
        )

    def _head_costs(self, setting: _Setting) -> dict[int, tuple[int, int]]:
        """What the heads of a layer may cost, and the key-value heads and queries that cost it."""
        rates = self._cost.rates(setting.hidden)
        heads = self._totals["heads"] if setting.heads is None else [setting.heads]
        queries = self._totals["queries"] if setting.queries is None else [setting.queries]
        pairs = itertools.product([count for count in heads if count], queries)
        return {count * int(rates.heads[0, each]): (count, each) for count, each in pairs}

    def _build(
        self, choice: Choice, setting: _Setting, layers: int, parts: tuple[_Sublayer, _Sublayer], pair: tuple[int, int]
    ) -> Choice:
        built, axes = choice.copy(), self._axes

        def resize(name: str, row: int, total: int) -> None:
            built.masks[name][row] = axes[name].resize(built.masks[name][row], total)

        for name in _MODEL_WIDE:
            if (total := getattr(setting, name)) is not None:
                resize(name, 0, total)
        resize("layers", 0, layers)
        kept, now = np.flatnonzero(built.kept_layers()).tolist(), built.sizes()
        rates, costs = self._cost.rates(setting.hidden), self._head_costs(setting)
        wanted = (now.kv_heads * rates.each_head(now.queries))[kept].tolist()
        for layer, value in zip(kept, parts[0].assign(pair[0], wanted), strict=True):
            heads, queries = costs.get(value, (0, self._totals["queries"][-1]))
            if setting.heads is None:
                resize("heads", layer, heads)
            if setting.queries is None:
                resize("queries", layer, queries)
        wanted = (now.neurons * rates.neuron)[kept].tolist()
        for layer, value in zip(kept, parts[1].assign(pair[1], wanted), strict=True):
            if setting.neurons is None and rates.neuron:
                resize("neurons", layer, value // rates.neuron)
        return built


Reach = WideReach | LayeredReach


def reach_of(axes: Mapping[str, BoundAxis], cost: CostModel) -> Reach:
    """The costs that a space with these axes can reach."""
    if not cost.is_even:
        raise UserError(
            "no sub-network inside the budget was found where layers cost differently by their windows: widen the "
            f"budget, or give a --sequence-length below {cost.sequence_length}, within the shortest window"
        )
    return LayeredReach(axes, cost) if any(axis.per_layer for axis in axes.values()) else WideReach(axes, cost)


def _pair(
    attention: IntArray, mlp: IntArray, low: int, high: int, near_attention: int, near_mlp: int
) -> tuple[int, int] | None:
    """One total of each that together lie in ``low..high``, near the given ones; None if there are none."""
    first = np.searchsorted(mlp, low - attention, side="left")
    past = np.searchsorted(mlp, high - attention, side="right")
    found = np.flatnonzero(past > first)
    if not len(found):
        return None
    best = found[np.argmin(np.abs(attention[found] - near_attention))]
    place = min(max(int(np.searchsorted(mlp, near_mlp)), int(first[best])), int(past[best]) - 1)
    return int(attention[best]), int(mlp[place])


@functools.lru_cache(maxsize=256)
def _reachable(values: tuple[int, ...], layers: int) -> tuple[BoolArray, ...]:
    """Entry ``n`` says which totals ``n`` of ``layers`` layers can reach, each taking one of the positive values."""
    tables = [np.ones(1, dtype=bool)]
    top = max(values, default=0)
    for count in range(1, layers + 1):
        table = np.zeros(count * top + 1, dtype=bool)
        for value in values:
            table[value : value + len(tables[-1])] |= tables[-1]
        tables.append(table)
    return tuple(tables)


@dataclass(frozen=True)
class _Sublayer:
    """What one kind of sub-layer may cost in a layer."""

    values: tuple[int, ...]  # The positive costs that its units may have; any of them may be taken in any layer
    fixed: int  # Its cost besides, where it is not skipped
    may_skip: bool  # A layer may skip it
    if_all_skip: int = 0  # The cost when every layer skips it

    @property
    def _unit(self) -> int:
        return max(math.gcd(*self.values), 1)

    def _scaled(self) -> tuple[int, ...]:
        return tuple(sorted({value // self._unit for value in self.values}))

    def _tables(self, layers: int) -> tuple[BoolArray, ...]:
        # Asked for every number of layers in turn: rounding up to a power of two lets one computation serve many.
        return _reachable(self._scaled(), 1 << (layers - 1).bit_length())

    def _counts(self, layers: int) -> range:
        """How many of the layers may keep it."""
        if not self.values:
            return range(0, 1)
        return range(0 if self.may_skip else layers, layers + 1)

    def totals(self, layers: int) -> IntArray:
        """Every total cost that this many layers can reach, ascending."""
        tables = self._tables(layers)
        parts = [
            np.flatnonzero(tables[n]).astype(np.int64) * self._unit + n * self.fixed + (n == 0) * self.if_all_skip
            for n in self._counts(layers)
        ]
        return np.unique(np.concatenate(parts))

    def assign(self, total: int, wanted: list[int]) -> list[int]:
        """Values, 0 where skipped, for layers that together cost ``total``, each as near the wanted one as can be.

        Raises:
            ValueError: The total is none of :meth:`totals`.
        """
        tables = self._tables(len(wanted))
        for count in self._counts(len(wanted)):
            rest, unit = total - count * self.fixed - (count == 0) * self.if_all_skip, self._unit
            if 0 <= rest < len(tables[count]) * unit and rest % unit == 0 and tables[count][rest // unit]:
                return self._walk(tables, count, rest // unit, wanted)
        raise ValueError(f"{len(wanted)} layers cannot cost {total}")

    def _walk(self, tables: tuple[BoolArray, ...], count: int, rest: int, wanted: list[int]) -> list[int]:
        taken = []
        for left, wish in zip(range(len(wanted), 0, -1), wanted, strict=True):
            options = [
                value
                for value in self._scaled()
                if count and 0 <= rest - value < len(tables[count - 1]) and tables[count - 1][rest - value]
            ]
            if count < left:
                options.append(0)
            value = min(options, key=lambda option: abs(option * self._unit - wish))
            taken.append(value * self._unit)
            count, rest = count - (value > 0), rest - value
        return taken
