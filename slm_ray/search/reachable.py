"""Which costs a space can reach exactly, and the choice nearest to a given one in a range.

Greedy steps settle almost any choice in almost any range. Where they cannot (a range narrower than a block, a space
whose sizes lie far apart), this finds a choice if there is one at all, and the nearest costs if there is none. Here are
spaces with choices per layer; :mod:`slm_ray.search.wide` has those without.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from slm_ray.search.axes import IntArray
from slm_ray.search.sizing import Choice, CostModel
from slm_ray.search.sums import Sublayer
from slm_ray.search.totals import resize, totals_of


@dataclass(frozen=True)
class _Setting:
    """Model-wide sizes, and what they leave to the layers. None where each layer chooses for itself."""

    hidden: int
    heads: int | None
    queries: int | None
    neurons: int | None


class LayeredReach:
    """The costs a space with choices per layer can reach in one budget quantity."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._axes = cost.sizer.axes
        self._totals = {name: totals_of(axis) for name, axis in self._axes.items()}

    def nearest(self, choice: Choice, low: int, high: int) -> Choice | None:
        """A choice that costs ``low..high``, near the given one; None if there is none."""
        sizes = self._cost.sizer.measure(choice)
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
        below: int | None = None
        above: int | None = None
        for setting in self._settings(None):
            base = self._cost.rates(setting.hidden).base
            attention, mlp = self._sublayers(setting)
            for layers in self._totals["layers"]:
                first, second = attention.totals(layers), mlp.totals(layers)
                under = np.searchsorted(second, low - base - first, side="left") - 1
                over = np.searchsorted(second, high - base - first, side="right")
                sums = base + first[under >= 0] + second[under[under >= 0]]
                below = max([*sums.tolist(), *([] if below is None else [below])], default=None)
                sums = base + first[over < len(second)] + second[over[over < len(second)]]
                above = min([*sums.tolist(), *([] if above is None else [above])], default=None)
        return below, above

    def _settings(self, choice: Choice | None) -> Iterator[_Setting]:
        """All model-wide sizes, those nearest to a choice's first."""
        names = ("hidden", "heads", "queries", "neurons")
        options: list[list[int | None]] = []
        for name in names:
            axis = self._axes[name]
            wide: list[int | None] = [None] if axis.per_layer else [*self._totals[name]]
            if choice is not None and not axis.per_layer:
                now = int(choice.mask(name)[0] @ axis.sizes)
                wide.sort(key=lambda total, now=now: abs((total or 0) - now))  # type: ignore[misc]
            options.append(wide)
        settings = itertools.product(*(enumerate(wide) for wide in options))
        ordered = settings if choice is None else sorted(settings, key=lambda picks: sum(place for place, _ in picks))
        for picks in ordered:
            hidden, heads, queries, neurons = (total for _, total in picks)
            yield _Setting(hidden or 0, heads, queries, neurons)

    def _sublayers(self, setting: _Setting) -> tuple[Sublayer, Sublayer]:
        rates = self._cost.rates(setting.hidden)
        values = self._head_values(setting)
        queries = self._totals["queries"][-1] if setting.queries is None else setting.queries
        rescue = rates.attention + int(rates.heads[queries])
        heads = self._totals["heads"] if setting.heads is None else [setting.heads]
        neurons = self._totals["neurons"] if setting.neurons is None else [setting.neurons]
        mlp = tuple(units * rates.neuron for units in neurons if units * rates.neuron)
        return (
            Sublayer(tuple(values), rates.attention, 0 in heads, rescue),
            Sublayer(mlp, rates.mlp, 0 in neurons),
        )

    def _head_values(self, setting: _Setting) -> dict[int, tuple[int, int]]:
        """What the heads of a layer may cost, and the key-value heads and queries that cost it."""
        rates = self._cost.rates(setting.hidden)
        heads = self._totals["heads"] if setting.heads is None else [setting.heads]
        queries = self._totals["queries"] if setting.queries is None else [setting.queries]
        pairs = itertools.product([count for count in heads if count], queries)
        return {count * int(rates.heads[each]): (count, each) for count, each in pairs}

    def _build(
        self, choice: Choice, setting: _Setting, layers: int, parts: tuple[Sublayer, Sublayer], pair: tuple[int, int]
    ) -> Choice:
        built, axes = choice.copy(), self._axes
        for name in ("hidden", "heads", "queries", "neurons"):
            if (total := getattr(setting, name)) is not None:
                built.mask(name)[0] = resize(axes[name], built.mask(name)[0], total)
        built.layers[0] = resize(axes["layers"], built.layers[0], layers)
        kept = np.flatnonzero(self._cost.sizer.kept_layers(built))
        now = self._cost.sizer.measure(built)
        rates, values = self._cost.rates(setting.hidden), self._head_values(setting)
        wanted = (now.kv_heads * rates.heads[now.queries])[kept].tolist()
        for layer, value in zip(kept, parts[0].assign(pair[0], wanted), strict=True):
            self._set_attention(built, setting, int(layer), *values.get(value, (0, self._totals["queries"][-1])))
        wanted = (now.neurons * rates.neuron)[kept].tolist()
        for layer, value in zip(kept, parts[1].assign(pair[1], wanted), strict=True):
            if setting.neurons is None and rates.neuron:
                built.neurons[layer] = resize(axes["neurons"], built.neurons[layer], value // rates.neuron)
        return built

    def _set_attention(self, choice: Choice, setting: _Setting, layer: int, heads: int, queries: int) -> None:
        if setting.heads is None:
            choice.heads[layer] = resize(self._axes["heads"], choice.heads[layer], heads)
        if setting.queries is None:
            choice.queries[layer] = resize(self._axes["queries"], choice.queries[layer], queries)


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
