"""A space's axes bound to a teacher: which genes they have, which units each gene stands for.

Units are cut along the axis's order into blocks: block ``j`` of a layer holds the units ranked ``j * step`` to
``(j + 1) * step - 1`` there. A choice is a boolean mask ``[rows, blocks]``, with one row for the whole model or one per
layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.config.errors import UserError
from slm_ray.models.scores import UnitScores, natural_scores
from slm_ray.records.architecture import Architecture
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search.space import AXES, NATURAL, Axis, SearchSpace

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BoundAxis:
    """One axis of a space, for one teacher.

    Attributes:
        name: ``hidden``, ``layers``, ``heads``, ``queries`` or ``neurons``.
        rows: Choices made: 1 for the model, or one per layer.
        sizes: ``[blocks]``, units in each block; only the last may be smaller than the step.
        order: ``[layers or 1, ..., units]``, the units' indices, best first. For queries, ``[layers, kv_heads,
            queries]`` of the teacher's query-head indices.
        prefix: The choice is a count of blocks, not a subset of them.
        least: The smallest number of blocks kept.
        free: The space chooses along this axis; otherwise everything is kept and there are no genes.
        start: The first of its genes.
        allowed: ``[rows, blocks]``, the blocks that may be kept: all, unless the teacher has only some of its units
            left. In every row those come first.
    """

    name: str
    rows: int
    sizes: IntArray
    order: IntArray
    prefix: bool
    least: int
    free: bool
    start: int
    allowed: BoolArray

    @property
    def blocks(self) -> int:
        """How many blocks a row has."""
        return len(self.sizes)

    @property
    def genes_per_row(self) -> int:
        """One count, or one bit per block; none where nothing is chosen."""
        return 0 if not self.free else 1 if self.prefix else self.blocks

    @property
    def stop(self) -> int:
        """One past the last of its genes."""
        return self.start + self.rows * self.genes_per_row

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a choice of its own among units inside it."""
        return self.rows > 1

    def expand(self, genes: IntArray) -> BoolArray:
        """The mask ``[rows, blocks]`` of a whole genome's genes, ``least`` made good with the best blocks."""
        if not self.free:
            return np.ones((self.rows, self.blocks), dtype=bool)
        own = genes[self.start : self.stop]
        if self.prefix:
            mask: BoolArray = np.arange(self.blocks)[None, :] < own[:, None]
            return mask & self.allowed
        mask = own.reshape(self.rows, self.blocks).astype(bool)
        if self.least:
            for row in np.flatnonzero(mask.sum(axis=1) < self.least):
                missing = np.flatnonzero(~mask[row])
                mask[row, missing[: self.least - int(mask[row].sum())]] = True
        return mask & self.allowed

    def contract(self, mask: BoolArray) -> IntArray:
        """The genes of a mask ``[rows, blocks]``."""
        if not self.free:
            return np.zeros(0, dtype=np.int64)
        return mask.sum(axis=1, dtype=np.int64) if self.prefix else mask.astype(np.int64).reshape(-1)

    def kept_units(self, row: int, mask: BoolArray) -> list[int]:
        """The units, ascending, in the blocks that a mask ``[blocks]`` keeps along the order of layer ``row``."""
        chosen = self.order[row][np.repeat(mask, self.sizes)]
        return [int(unit) for unit in np.sort(chosen)]

    def mask_of(self, row: int, units: Iterable[int]) -> BoolArray:
        """The mask ``[blocks]`` that keeps exactly these units of layer ``row``.

        Raises:
            ValueError: They are not whole blocks.
        """
        kept = np.isin(self.order[row], np.fromiter(units, dtype=np.int64))
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        counts = np.add.reduceat(kept.astype(np.int64), starts)
        if np.any((counts != 0) & (counts != self.sizes)):
            raise ValueError(f"{self.name}: the units kept are not whole blocks of {self.sizes[0]} along the order")
        return counts > 0

    def block_sums(self, scores: FloatArray) -> FloatArray:
        """Scores per unit ``[..., units]`` (in the teacher's order) summed per block ``[..., blocks]``."""
        ranked = np.take_along_axis(scores, self.order, axis=-1)
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        return np.asarray(np.add.reduceat(ranked, starts, axis=-1), dtype=np.float64)


def ranking(scores: FloatArray) -> IntArray:
    """Indices along the last axis from the highest score to the lowest, equal scores in the teacher's order."""
    return np.argsort(-scores, axis=-1, kind="stable").astype(np.int64)


def _block_sizes(units: int, step: int) -> IntArray:
    return np.diff(np.append(np.arange(0, units, step), units)).astype(np.int64)


def check_teacher(teacher: Architecture) -> None:
    """Check that units can be counted alike in every layer.

    Raises:
        UserError: The layers differ, or skip something.
    """
    shapes = set(teacher.layers)
    if len(shapes) != 1 or not teacher.is_uniform:
        raise UserError(
            f"a search needs a teacher whose layers all have the same sizes and skip nothing, got {len(shapes)}"
            " different shapes: search the model this one came from"
        )


def check_scores(teacher: Architecture, scores: UnitScores) -> None:
    """Check that scores are finite and have the teacher's sizes.

    Raises:
        ValueError: They are not, or have others.
    """
    layers, shape = teacher.num_hidden_layers, teacher.layers[0]
    wanted = {
        "hidden": (teacher.hidden_size,),
        "layers": (layers,),
        "kv_heads": (layers, shape.num_key_value_heads),
        "query_heads": (layers, shape.num_attention_heads),
        "neurons": (layers, shape.intermediate_size),
    }
    for field, size in wanted.items():
        value = np.asarray(getattr(scores, field))
        if value.shape != size or not np.all(np.isfinite(value)):
            raise ValueError(f"{scores.method} scores of {field} must be finite and of shape {size}, got {value.shape}")


def natural_scores_of(teacher: Architecture) -> UnitScores:
    """Scores that keep a teacher's first units first."""
    shape = teacher.layers[0]
    return natural_scores(
        teacher.hidden_size,
        teacher.num_hidden_layers,
        shape.num_key_value_heads,
        shape.num_attention_heads,
        shape.intermediate_size,
    )


def bind_axes(
    space: SearchSpace, teacher: Architecture, scores: Mapping[str, UnitScores], left: SubnetSpec | None = None
) -> dict[str, BoundAxis]:
    """Bind every axis to a teacher, those the space does not choose along included.

    Args:
        space: What may be chosen.
        teacher: The teacher's sizes, which :func:`check_teacher` allows.
        scores: The scores of every order used, ``natural`` included.
        left: The units that the teacher has left; all of them by default.

    Raises:
        UserError: The teacher has fewer units than a ``least``.
    """
    axes: dict[str, BoundAxis] = {}
    has = _units_left(teacher, left) if left is not None else {}
    start = 0
    for name in AXES:
        axis = space.axes.get(name)
        # Where attention is dropped everywhere the best layer gets one head back, so layers need an order that means
        # something even when all are kept: that of the heads.
        ordering = axis or (space.axes.get("heads") if name == "layers" else None)
        order = _order(name, teacher, scores[ordering.order if ordering else NATURAL])
        units = order.shape[-1]
        if axis and axis.least > units:
            rule = f"must be at most the teacher's {units}, got {axis.least}"
            raise UserError(f"space '{space.name}': axes.{name}.least {rule}: lower it in the space's file")
        axes[name] = _bind(name, axis, order, teacher, start, has.get(name))
        start = axes[name].stop
    return axes


def _bind(
    name: str, axis: Axis | None, order: IntArray, teacher: Architecture, start: int, has: BoolArray | None
) -> BoundAxis:
    units = order.shape[-1]
    if axis is None:
        step = 64 if name in ("hidden", "neurons") else 1
        sizes = _block_sizes(units, step)
        return BoundAxis(name, 1, sizes, order, True, len(sizes), False, start, np.ones((1, len(sizes)), dtype=bool))
    rows = teacher.num_hidden_layers if axis.per == "layer" else 1
    prefix, least = axis.select == "count", -(-axis.least // axis.step)
    sizes = _block_sizes(units, axis.step)
    allowed = np.ones((rows, len(sizes)), dtype=bool)
    if has is not None:
        order, allowed = _those_left_first(order, has, sizes, rows)
    return BoundAxis(name, rows, sizes, order, prefix, least, True, start, allowed)


def _units_left(teacher: Architecture, left: SubnetSpec) -> dict[str, BoolArray]:
    """Per axis, whether the teacher has each unit left: ``[layers or 1, units]``, for queries with heads between.

    In a layer that is gone as a whole nothing is left; it is no layer of what has to hold in every layer.
    """
    layers, shape = teacher.num_hidden_layers, teacher.layers[0]
    group = shape.num_attention_heads // shape.num_key_value_heads
    has: dict[str, BoolArray] = {
        "layers": np.zeros((1, layers), dtype=bool),
        "heads": np.zeros((layers, shape.num_key_value_heads), dtype=bool),
        "queries": np.zeros((layers, shape.num_key_value_heads, group), dtype=bool),
        "neurons": np.zeros((layers, shape.intermediate_size), dtype=bool),
    }
    for layer in left.layers:
        has["layers"][0, layer.source] = True
        has["heads"][layer.source, list(layer.kv_heads)] = True
        has["neurons"][layer.source, list(layer.neurons)] = True
        queries = np.array(layer.flat_query_heads, dtype=np.int64)
        has["queries"][layer.source, queries // group, queries % group] = True
    return has


def _those_left_first(order: IntArray, has: BoolArray, sizes: IntArray, rows: int) -> tuple[IntArray, BoolArray]:
    """An order with the units that are left first, and the blocks ``[rows, blocks]`` that hold no others."""
    within = order % order.shape[-1]  # query heads are named by their number in the layer
    ranked = np.take_along_axis(has, within, axis=-1)
    first = np.argsort(~ranked, axis=-1, kind="stable")
    ranked = np.take_along_axis(ranked, first, axis=-1)
    counts = ranked.sum(axis=-1)  # [layers or 1], for queries with heads after
    if counts.ndim > 1:  # every key-value head of a layer keeps as many query heads as the others
        counts = np.array([row[row > 0].min(initial=order.shape[-1]) for row in counts])
    if rows == 1 and len(counts) > 1:  # one choice for all layers that are left
        counts = np.array([counts[counts > 0].min(initial=order.shape[-1])])
    return np.take_along_axis(order, first, axis=-1), np.cumsum(sizes)[None, :] <= counts[:, None]


def _order(name: str, teacher: Architecture, scores: UnitScores) -> IntArray:
    if name == "hidden":
        return ranking(scores.hidden[None, :])
    if name == "layers":
        return ranking(scores.layers[None, :])
    if name == "heads":
        return ranking(scores.kv_heads)
    if name == "neurons":
        return ranking(scores.neurons)
    kv_heads = teacher.layers[0].num_key_value_heads
    grouped = scores.query_heads.reshape(teacher.num_hidden_layers, kv_heads, -1)
    per_group = grouped.shape[-1]
    return ranking(grouped) + np.arange(kv_heads)[None, :, None] * per_group
