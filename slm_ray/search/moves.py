"""The single steps a choice can take: every block that may be pruned, or added, with its worth per cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from slm_ray.search.axes import AXES, BoolArray, FloatArray, IntArray
from slm_ray.search.priorities import Priorities
from slm_ray.search.sizes import Choice, ChoiceSizes, CostModel

PER_LAYER = ("heads", "neurons")


@dataclass(frozen=True, eq=False)
class Moves:
    """Steps, all in one direction; arrays of one entry per step."""

    axis: IntArray  # The axis's place in ``AXES``
    row: IntArray  # The row of its mask
    block: IntArray  # The block
    density: FloatArray  # Worth per cost: the lowest is pruned first, the highest added first
    cost: IntArray  # How much this one step, taken alone, changes the cost by (positive)
    unit_cost: IntArray  # The same without the costs of a sub-layer besides its units
    ready: BoolArray  # It can be taken at once. (In a count, a block waits for the blocks behind it, or before it.)

    def __len__(self) -> int:
        return len(self.axis)

    @classmethod
    def along(
        cls, name: str, rows: IntArray, blocks: IntArray, density: FloatArray, cost: IntArray,
        unit_cost: IntArray | None = None, ready: BoolArray | None = None,
    ) -> Moves:  # fmt: skip
        """Steps along one axis; by default all are ready and no sub-layer begins or ends with them."""
        axis = np.full(len(rows), AXES.index(name))
        ready = np.ones(len(rows), dtype=bool) if ready is None else ready
        return cls(axis, rows, blocks, density, cost, cost if unit_cost is None else unit_cost, ready)

    @classmethod
    def join(cls, parts: Sequence[Moves]) -> Moves:
        """All the steps of several lists, in that order."""
        none = np.zeros(0, dtype=np.int64)
        parts = [cls.along("hidden", none, none, np.zeros(0), none), *parts]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def take(self, which: IntArray | BoolArray) -> Moves:
        """Some of the steps, in this order."""
        return Moves(*(getattr(self, field.name)[which] for field in fields(self)))

    def is_of(self, name: str) -> BoolArray:
        """Which steps are along this axis."""
        return np.asarray(self.axis == AXES.index(name))

    def apply(self, choice: Choice, grow: bool) -> None:
        """Take all these steps."""
        for name in AXES:
            mine = self.is_of(name)
            if mine.any():
                choice.masks[name][self.row[mine], self.block[mine]] = grow


def _ends(mask: BoolArray, least: int, grow: bool) -> BoolArray:
    """Of counts ``[rows, blocks]``, the one block per row that can go, or come, next."""
    counts = mask.sum(axis=1, keepdims=True)
    here = np.arange(mask.shape[1])[None, :]
    return np.asarray(here == counts if grow else (here == counts - 1) & (counts > least))


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)


class MoveFinder:
    """Finds the steps a choice can take, for one cost and one set of priorities."""

    def __init__(self, choice: Choice, cost: CostModel, priorities: Priorities) -> None:
        self._choice, self._cost, self._priorities = choice, cost, priorities
        self._axes = choice.axes

    def split(self, sizes: ChoiceSizes, grow: bool) -> tuple[Moves, Moves]:
        """Steps inside single layers, whose worth stays what it is while others are taken, and all other steps."""
        worth = {"heads": self._heads_worth(), "neurons": self._priorities.neurons}
        steady, others = [], []
        for name in PER_LAYER:
            if self._axes[name].per_layer:
                steady.append(self._inside_layers(name, worth[name], sizes, grow))
            elif self._axes[name].free:
                others.append(self._across_layers(name, worth[name], sizes, grow))
        if self._axes["layers"].free:
            others.append(self._whole_layers(worth, sizes, grow))
        if self._axes["hidden"].free:
            others.append(self._hidden(sizes, grow))
        if self._axes["queries"].free:
            others.append(self._queries(sizes, grow))
        return Moves.join(steady), Moves.join(others)

    def _heads_worth(self) -> FloatArray:
        """``[layers, blocks]``; a head that lost query heads is worth their share less."""
        heads, queries = self._priorities.heads, self._priorities.queries
        if not self._axes["queries"].free:
            return heads
        kept = (queries * self._choice.per_layer("queries")[:, None, :]).sum(axis=2)
        return heads * _share(kept, queries.sum(axis=2))

    def _unit_costs(self, name: str, sizes: ChoiceSizes) -> tuple[IntArray, int]:
        """``[layers, blocks]`` costs of the blocks, and the cost of the sub-layer besides."""
        rates, block_sizes = self._cost.rates(sizes.hidden), self._axes[name].sizes
        if name == "heads":
            return rates.each_head(sizes.queries)[:, None] * block_sizes[None, :], rates.attention
        return np.broadcast_to(rates.neuron * block_sizes, (len(sizes.kept), len(block_sizes))), rates.mlp

    def _density(self, worth: FloatArray, cost: IntArray) -> FloatArray:
        return worth / np.maximum(cost, 1) if self._priorities.per_cost else worth

    def _inside_layers(self, name: str, worth: FloatArray, sizes: ChoiceSizes, grow: bool) -> Moves:
        axis, mask = self._axes[name], self._choice.masks[name]
        unit_cost, fixed = self._unit_costs(name, sizes)
        density = self._density(worth, unit_cost)
        open_ = (~mask if grow else mask) & sizes.kept[:, None]
        ready = np.ones_like(mask)
        if axis.is_count:
            density, ready = self._wait_in_line(density, open_, grow), _ends(mask, axis.least, grow)
        if not grow:
            open_ = open_ & ~self._protected(mask, density, axis.least, axis.is_count)
        counts = mask.sum(axis=1, keepdims=True)
        cost = unit_cost + fixed * (counts == (0 if grow else 1))
        # Of equals, the last block goes first and the first one comes first.
        way = slice(None, None, 1 if grow else -1)
        rows, blocks = np.nonzero((open_ & (unit_cost > 0))[:, way])
        blocks = blocks if grow else axis.blocks - 1 - blocks
        at = (rows, blocks)
        return Moves.along(name, rows, blocks, density[at], cost[at], unit_cost[at], ready[at])

    @staticmethod
    def _wait_in_line(density: FloatArray, open_: BoolArray, grow: bool) -> FloatArray:
        """In a count, a block cannot go before the ones behind it, nor come before the ones ahead of it."""
        if grow:
            return np.asarray(np.minimum.accumulate(np.where(open_, density, np.inf), axis=1))
        masked = np.where(open_, density, -np.inf)
        return np.asarray(np.maximum.accumulate(masked[:, ::-1], axis=1)[:, ::-1])

    @staticmethod
    def _protected(mask: BoolArray, density: FloatArray, least: int, is_count: bool) -> BoolArray:
        """The ``least`` blocks of every row that are never pruned: the densest kept ones."""
        protected = np.zeros_like(mask)
        if is_count:
            protected[:, :least] = True
        elif least:
            best = np.argsort(-np.where(mask, density, -np.inf), axis=1, kind="stable")[:, :least]
            np.put_along_axis(protected, best, True, axis=1)
        return protected

    def _single_row(
        self, name: str, worth: FloatArray, cost: IntArray, grow: bool, density: FloatArray | None = None
    ) -> Moves:
        """Steps of an axis with one choice for the model; ``worth`` and ``cost`` are ``[blocks]``."""
        axis, mask = self._axes[name], self._choice.masks[name]
        if axis.is_count:
            open_ = _ends(mask, axis.least, grow)
        else:
            open_ = (~mask if grow else mask) & (grow or int(mask.sum()) > axis.least)
        blocks = np.flatnonzero(open_[0] & (cost > 0))
        compared = self._density(worth, cost) if density is None else density
        return Moves.along(name, np.zeros(len(blocks), dtype=np.int64), blocks, compared[blocks], cost[blocks])

    def _across_layers(self, name: str, worth: FloatArray, sizes: ChoiceSizes, grow: bool) -> Moves:
        unit_cost, fixed = self._unit_costs(name, sizes)
        cost, column = unit_cost[sizes.kept].sum(axis=0), worth[sizes.kept]
        value = column.sum(axis=0) if self._priorities.per_cost else column.mean(axis=0)
        density = self._density(value, cost)
        if int(self._choice.masks[name].sum()) == (0 if grow else 1):
            cost = cost + fixed * int(sizes.kept.sum())
        return self._single_row(name, value, cost, grow, density)

    def _whole_layers(self, worth: dict[str, FloatArray], sizes: ChoiceSizes, grow: bool) -> Moves:
        axis, priorities = self._axes["layers"], self._priorities
        value = priorities.layers
        if priorities.per_cost:
            left = np.zeros_like(value)
            for name in PER_LAYER:
                left = left + (worth[name] * self._choice.per_layer(name)).sum(axis=1)
            value = value * _share(left, priorities.heads.sum(axis=1) + priorities.neurons.sum(axis=1))
        attention, mlp = self._cost.sublayers(sizes)
        order = axis.order[0]
        total = axis.sum_blocks(value[order])
        cost = axis.sum_blocks((attention + mlp)[order]).astype(np.int64)
        return self._single_row("layers", total if priorities.per_cost else total / axis.sizes, cost, grow)

    def _hidden(self, sizes: ChoiceSizes, grow: bool) -> Moves:
        block_sizes = self._axes["hidden"].sizes
        now, cost = self._cost.of_sizes(sizes), np.zeros(len(block_sizes), dtype=np.int64)
        for size in np.unique(block_sizes):
            width = sizes.hidden + int(size) if grow else sizes.hidden - int(size)
            if width > 0:
                cost[block_sizes == size] = abs(self._cost.of_sizes(sizes, width) - now)
        return self._single_row("hidden", self._priorities.hidden, cost, grow)

    def _queries(self, sizes: ChoiceSizes, grow: bool) -> Moves:
        """One step per row: its next block of query heads."""
        axis, mask, num_layers = self._axes["queries"], self._choice.masks["queries"], len(sizes.kept)
        rows, blocks = np.nonzero(_ends(mask, axis.least, grow))
        rates = self._cost.rates(sizes.hidden)
        layers = np.arange(num_layers) if axis.per_layer else np.zeros(num_layers, dtype=np.int64)
        step = np.zeros(axis.rows, dtype=np.int64)
        block = np.zeros(axis.rows, dtype=np.int64)
        step[rows], block[rows] = axis.sizes[blocks] * (1 if grow else -1), blocks
        change = np.abs(rates.each_head(sizes.queries + step[layers]) - rates.each_head(sizes.queries))
        cost = np.asarray(change * sizes.kv_heads * sizes.kept, dtype=np.int64)
        kept_heads = self._choice.per_layer("heads") & sizes.kept[:, None]
        each = self._priorities.queries[np.arange(num_layers), :, block[layers]] * kept_heads
        worth = np.asarray(np.bincount(layers, each.sum(axis=1), axis.rows)[rows], dtype=np.float64)
        if not self._priorities.per_cost:
            worth = worth / np.maximum(np.bincount(layers, kept_heads.sum(axis=1), axis.rows)[rows], 1)
        total = np.bincount(layers, cost, axis.rows).astype(np.int64)[rows]
        return Moves.along("queries", rows, blocks, self._density(worth, total), total).take(total > 0)
