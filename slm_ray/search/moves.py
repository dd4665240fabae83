"""The single steps a choice can take: every block that may be dropped, or added, with its worth per cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slm_ray.search.axes import BoolArray, FloatArray, IntArray
from slm_ray.search.ranking import Priorities
from slm_ray.search.sizing import Choice, CostModel, Sizes

PER_LAYER = ("heads", "neurons")
_CODES = {"hidden": 0, "layers": 1, "heads": 2, "queries": 3, "neurons": 4}


@dataclass(frozen=True, eq=False)
class Moves:
    """Steps, all in one direction; arrays of one entry per step.

    Attributes:
        axis: A code of the axis.
        row: The row of its mask.
        block: The block.
        density: Worth per cost: drops go from the lowest up, additions from the highest down.
        cost: How much this one step, taken alone, changes the cost by (positive).
        unit_cost: The same without what a sub-layer costs besides its units.
        ready: It can be taken at once. (In a count, a block waits for the blocks behind it, or before it.)
    """

    axis: IntArray
    row: IntArray
    block: IntArray
    density: FloatArray
    cost: IntArray
    unit_cost: IntArray
    ready: BoolArray

    def __len__(self) -> int:
        return len(self.axis)

    def take(self, which: IntArray | BoolArray) -> Moves:
        """Some of the steps, in this order."""
        return Moves(
            self.axis[which],
            self.row[which],
            self.block[which],
            self.density[which],
            self.cost[which],
            self.unit_cost[which],
            self.ready[which],
        )

    def is_of(self, name: str) -> BoolArray:
        """Which steps are along this axis."""
        mine: BoolArray = self.axis == _CODES[name]
        return mine

    def apply(self, choice: Choice, grow: bool) -> None:
        """Take all these steps."""
        for name in _CODES:
            mine = self.is_of(name)
            if mine.any():
                choice.mask(name)[self.row[mine], self.block[mine]] = grow


def _moves(
    name: str,
    rows: IntArray,
    blocks: IntArray,
    density: FloatArray,
    cost: IntArray,
    unit_cost: IntArray,
    ready: BoolArray,
) -> Moves:
    return Moves(np.full(len(rows), _CODES[name]), rows, blocks, density, cost, unit_cost, ready)


def join_moves(parts: list[Moves]) -> Moves:
    """All the steps of several lists, in that order."""
    none = np.zeros(0, dtype=np.int64)
    parts = [_moves("hidden", none, none, np.zeros(0), none, none, np.zeros(0, dtype=bool)), *parts]
    fields = ("axis", "row", "block", "density", "cost", "unit_cost", "ready")
    return Moves(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


def ends(mask: BoolArray, least: int, grow: bool) -> BoolArray:
    """Of counts ``[rows, blocks]``, the one block per row that can go, or come, next."""
    counts = mask.sum(axis=1, keepdims=True)
    here = np.arange(mask.shape[1])[None, :]
    ready: BoolArray = here == counts if grow else (here == counts - 1) & (counts > least)
    return ready


class MoveFinder:
    """Finds the steps a choice can take, for one cost and one set of priorities."""

    def __init__(self, cost: CostModel, priorities: Priorities) -> None:
        self._cost = cost
        self._sizer = cost.sizer
        self._axes = cost.sizer.axes
        self._priorities = priorities
        self._starts = {name: np.concatenate([[0], np.cumsum(axis.sizes)[:-1]]) for name, axis in self._axes.items()}

    def split(self, choice: Choice, sizes: Sizes, grow: bool) -> tuple[Moves, Moves]:
        """Steps inside single layers, whose worth stays what it is while others are taken, and all other steps."""
        attention, mlp = self._cost.sublayers(sizes)
        worth = self._heads_worth(choice)
        steady = [self._inside_layers(name, choice, sizes, worth, grow) for name in PER_LAYER if self._in_layers(name)]
        others = [self._across_layers(n, choice, sizes, worth, grow) for n in PER_LAYER if self._is_model_wide(n)]
        if self._axes["layers"].free:
            others.append(self._whole_layers(choice, attention + mlp, worth, grow))
        if self._axes["hidden"].free:
            others.append(self._hidden(choice, sizes, grow))
        if self._axes["queries"].free:
            others.append(self._queries(choice, sizes, grow))
        return join_moves(steady), join_moves(others)

    def _in_layers(self, name: str) -> bool:
        return self._axes[name].free and self._axes[name].per_layer

    def _is_model_wide(self, name: str) -> bool:
        return self._axes[name].free and not self._axes[name].per_layer

    def _heads_worth(self, choice: Choice) -> dict[str, FloatArray]:
        """Worth of heads and neurons; a head that lost query heads is worth their share less."""
        heads, neurons = self._priorities.heads, self._priorities.neurons
        if self._axes["queries"].free:
            queries = self._priorities.queries
            kept = (queries * self._sizer.per_layer(choice, "queries")[:, None, :]).sum(axis=2)
            total = queries.sum(axis=2)
            heads = heads * np.divide(kept, total, out=np.ones_like(kept), where=total > 0)
        return {"heads": heads, "neurons": neurons}

    def _unit_costs(self, name: str, sizes: Sizes) -> tuple[IntArray, int]:
        """``[layers, blocks]`` what each block costs, and what the sub-layer costs besides."""
        rates = self._cost.rates(sizes.hidden)
        block_sizes = self._axes[name].sizes
        if name == "heads":
            return rates.heads[sizes.queries][:, None] * block_sizes[None, :], rates.attention
        return np.broadcast_to(rates.neuron * block_sizes, (len(sizes.kept), len(block_sizes))), rates.mlp

    def _density(self, worth: FloatArray, cost: IntArray) -> FloatArray:
        if not self._priorities.per_cost:
            return worth
        return worth / np.maximum(cost, 1)

    def _inside_layers(
        self, name: str, choice: Choice, sizes: Sizes, worth: dict[str, FloatArray], grow: bool
    ) -> Moves:
        axis, mask = self._axes[name], choice.mask(name)
        unit_cost, fixed = self._unit_costs(name, sizes)
        density = self._density(worth[name], unit_cost)
        open_ = (~mask & axis.allowed if grow else mask) & sizes.kept[:, None]
        ready = np.ones_like(mask)
        if axis.prefix:
            density, ready = self._wait_in_line(density, open_, grow), ends(mask, axis.least, grow)
        if not grow:
            open_ = open_ & ~self._protected(mask, density, axis.least, axis.prefix)
        counts = mask.sum(axis=1, keepdims=True)
        cost = unit_cost + fixed * (counts == (0 if grow else 1))
        # Of equals, the last block goes first and the first one comes first.
        way = slice(None, None, 1 if grow else -1)
        rows, blocks = np.nonzero((open_ & (unit_cost > 0))[:, way])
        blocks = blocks if grow else axis.blocks - 1 - blocks
        at = (rows, blocks)
        return _moves(name, rows, blocks, density[at], cost[at], unit_cost[at], ready[at])

    @staticmethod
    def _wait_in_line(density: FloatArray, open_: BoolArray, grow: bool) -> FloatArray:
        """In a count, a block cannot go before the ones behind it, nor come before the ones ahead of it."""
        if grow:
            return np.asarray(np.minimum.accumulate(np.where(open_, density, np.inf), axis=1))
        masked = np.where(open_, density, -np.inf)
        return np.asarray(np.maximum.accumulate(masked[:, ::-1], axis=1)[:, ::-1])

    @staticmethod
    def _protected(mask: BoolArray, density: FloatArray, least: int, prefix: bool) -> BoolArray:
        """The ``least`` blocks of every row that are never dropped: the densest kept ones."""
        protected = np.zeros_like(mask)
        if prefix:
            protected[:, :least] = True
        elif least:
            best = np.argsort(-np.where(mask, density, -np.inf), axis=1, kind="stable")[:, :least]
            np.put_along_axis(protected, best, True, axis=1)
        return protected

    def _single_row(
        self,
        name: str,
        choice: Choice,
        worth: FloatArray,
        cost: IntArray,
        grow: bool,
        density: FloatArray | None = None,
    ) -> Moves:
        """Steps of an axis with one choice for the model; ``worth`` and ``cost`` are ``[blocks]``."""
        axis, mask = self._axes[name], choice.mask(name)
        open_ = (~mask & axis.allowed if grow else mask) & (grow or int(mask.sum()) > axis.least)
        if axis.prefix:
            open_ = ends(mask, axis.least, grow) & (axis.allowed | mask)
        blocks = np.flatnonzero(open_[0] & (cost > 0))
        rows, ready = np.zeros(len(blocks), dtype=np.int64), np.ones(len(blocks), dtype=bool)
        compared = self._density(worth, cost) if density is None else density
        return _moves(name, rows, blocks, compared[blocks], cost[blocks], cost[blocks], ready)

    def _across_layers(
        self, name: str, choice: Choice, sizes: Sizes, worth: dict[str, FloatArray], grow: bool
    ) -> Moves:
        unit_cost, fixed = self._unit_costs(name, sizes)
        cost = unit_cost[sizes.kept].sum(axis=0)
        column = worth[name][sizes.kept]
        value = column.sum(axis=0) if self._priorities.per_cost else column.mean(axis=0)
        density = self._density(value, cost)
        if int(choice.mask(name).sum()) == (0 if grow else 1):
            cost = cost + fixed * int(sizes.kept.sum())
        return self._single_row(name, choice, value, cost, grow, density)

    def _whole_layers(self, choice: Choice, layer_costs: IntArray, worth: dict[str, FloatArray], grow: bool) -> Moves:
        axis, priorities = self._axes["layers"], self._priorities
        value = priorities.layers
        if priorities.per_cost:
            left = np.zeros_like(value)
            for name in PER_LAYER:
                left = left + (worth[name] * self._sizer.per_layer(choice, name)).sum(axis=1)
            whole = priorities.whole_layers
            value = value * np.divide(left, whole, out=np.ones_like(left), where=whole > 0)
        starts, order = self._starts["layers"], axis.order[0]
        total = np.add.reduceat(value[order], starts)
        cost = np.add.reduceat(layer_costs[order], starts)
        return self._single_row("layers", choice, total if priorities.per_cost else total / axis.sizes, cost, grow)

    def _hidden(self, choice: Choice, sizes: Sizes, grow: bool) -> Moves:
        block_sizes = self._axes["hidden"].sizes
        now, cost = self._cost.of_sizes(sizes), np.zeros(len(block_sizes), dtype=np.int64)
        for size in np.unique(block_sizes):
            width = sizes.hidden + int(size) if grow else sizes.hidden - int(size)
            if width > 0:
                cost[block_sizes == size] = abs(self._cost.of_sizes(sizes, width) - now)
        return self._single_row("hidden", choice, self._priorities.hidden, cost, grow)

    def _queries(self, choice: Choice, sizes: Sizes, grow: bool) -> Moves:
        """One step per row: its next block of query heads."""
        axis, mask = self._axes["queries"], choice.mask("queries")
        rows, blocks = np.nonzero(ends(mask, axis.least, grow) & (axis.allowed | mask))
        if not len(rows):
            return _moves("queries", rows, blocks, np.zeros(0), rows, blocks, np.zeros(0, dtype=bool))
        heads = self._cost.rates(sizes.hidden).heads
        layers = np.arange(len(sizes.kept)) if axis.per_layer else np.zeros(len(sizes.kept), dtype=np.int64)
        step = np.zeros(axis.rows, dtype=np.int64)
        block = np.zeros(axis.rows, dtype=np.int64)
        step[rows], block[rows] = axis.sizes[blocks] * (1 if grow else -1), blocks
        change = np.abs(heads[sizes.queries + step[layers]] - heads[sizes.queries])
        cost = np.asarray(change * sizes.kv_heads * sizes.kept, dtype=np.int64)
        kept_heads = self._sizer.per_layer(choice, "heads") & sizes.kept[:, None]
        each = self._priorities.queries[np.arange(len(layers)), :, block[layers]] * kept_heads
        worth = np.asarray(np.bincount(layers, each.sum(axis=1), axis.rows)[rows], dtype=np.float64)
        if not self._priorities.per_cost:
            worth = worth / np.maximum(np.bincount(layers, kept_heads.sum(axis=1), axis.rows)[rows], 1)
        total = np.bincount(layers, cost, axis.rows).astype(np.int64)[rows]
        useful = total > 0
        moves = _moves(
            "queries", rows, blocks, self._density(worth, total), total, total, np.ones(len(rows), dtype=bool)
        )
        return moves.take(useful)
