"""A space's axes bound to a teacher: which genes they have, and which units each gene stands for.

Units are grouped along the axis's order into blocks: block ``j`` of a layer holds the units ranked ``j * step`` to
``(j + 1) * step - 1`` there. A choice is a boolean mask ``[rows, blocks]``, with one row for the whole model or one per
layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.config.errors import UserError
from slm_ray.models.scores import UnitScores, natural_scores
from slm_ray.records.architecture import Architecture
from slm_ray.search.space import AXES, NATURAL, SearchSpace

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_COUNTS = re.compile(r"[0-9]+(,[0-9]+)*", re.ASCII)
_HEX = re.compile(r"x[0-9a-f]+", re.ASCII)


@dataclass(frozen=True)
class GeneGroup:
    """Genes ``start..stop-1``: one choice along one axis."""

    axis: str  # The axis's name
    layer: int | None  # The teacher's layer the choice is made in; None where it is one for the model
    start: int  # The first gene
    stop: int  # One past the last
    is_count: bool  # One gene, a number of blocks; else one bit per block, the best-ranked first


@dataclass(frozen=True, eq=False)
class BoundAxis:
    """One axis of a space, for one teacher."""

    name: str  # ``hidden``, ``layers``, ``heads``, ``queries`` or ``neurons``
    rows: int  # Choices made: 1 for the model, or one per layer
    sizes: IntArray  # ``[blocks]``, units in each block; only the last may be smaller than the step
    # ``[layers or 1, ..., units]``, the units' indices, best first. For queries, ``[layers, kv_heads, queries]`` of the
    # teacher's query-head indices.
    order: IntArray
    is_count: bool  # The choice is a count of blocks, not a subset of them
    least: int  # The smallest number of blocks kept
    free: bool  # The space chooses along this axis; otherwise everything is kept and there are no genes
    start: int  # The first of its genes

    @property
    def blocks(self) -> int:
        """How many blocks a row has."""
        return len(self.sizes)

    @property
    def genes_per_row(self) -> int:
        """One count, or one bit per block; none where nothing is chosen."""
        return 0 if not self.free else 1 if self.is_count else self.blocks

    @property
    def stop(self) -> int:
        """One past the last of its genes."""
        return self.start + self.rows * self.genes_per_row

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a choice of its own among units inside it."""
        return self.rows > 1

    def groups(self) -> list[GeneGroup]:
        """Its genes, choice by choice."""
        starts = range(self.start, self.stop, self.genes_per_row or 1)
        return [
            GeneGroup(self.name, row if self.per_layer else None, start, start + self.genes_per_row, self.is_count)
            for row, start in enumerate(starts)
        ]

    # Genes, masks and units

    def expand(self, own: IntArray) -> BoolArray:
        """The mask ``[rows, blocks]`` of its own genes, ``least`` made good with the best blocks."""
        if not self.free:
            return np.ones((self.rows, self.blocks), dtype=bool)
        if self.is_count:
            return np.asarray(np.arange(self.blocks)[None, :] < own[:, None])
        mask: BoolArray = own.reshape(self.rows, self.blocks).astype(bool)
        for row in np.flatnonzero(mask.sum(axis=1) < self.least):
            missing = np.flatnonzero(~mask[row])
            mask[row, missing[: self.least - int(mask[row].sum())]] = True
        return mask

    def contract(self, mask: BoolArray) -> IntArray:
        """The genes of a mask ``[rows, blocks]``."""
        if not self.free:
            return np.zeros(0, dtype=np.int64)
        return mask.sum(axis=1, dtype=np.int64) if self.is_count else mask.astype(np.int64).reshape(-1)

    def kept_units(self, row: int, mask: BoolArray) -> list[int]:
        """The units, ascending, in the blocks that a mask ``[blocks]`` keeps along the order of layer ``row``."""
        chosen = self.order[row][np.repeat(mask, self.sizes)]
        return [int(unit) for unit in np.sort(chosen)]

    def sum_blocks(self, ranked: FloatArray, along: int = -1) -> FloatArray:
        """Scores of units that stand in the axis's order, summed per block."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        return np.asarray(np.add.reduceat(ranked, starts, axis=along), dtype=np.float64)

    # Numbers of units

    def totals(self) -> list[int]:
        """Every number of units a row can keep, ascending; only full blocks, or the smaller last one too."""
        if not self.free:
            return [int(self.sizes.sum())]
        if self.is_count:
            return [int(self.sizes[:count].sum()) for count in range(self.least, self.blocks + 1)]
        step, last = int(self.sizes[0]), int(self.sizes[-1])
        without = [count * step for count in range(self.least, self.blocks)]
        with_last = [(count - 1) * step + last for count in range(max(self.least, 1), self.blocks + 1)]
        return sorted({*without, *with_last})

    def resize(self, row: BoolArray, total: int) -> BoolArray:
        """The mask ``[blocks]`` that keeps ``total`` units, as near to ``row`` as can be."""
        if self.is_count:
            count = int(np.searchsorted(np.cumsum(self.sizes), total)) + 1 if total else 0
            return np.asarray(np.arange(self.blocks) < count)
        step, last = int(self.sizes[0]), int(self.sizes[-1])
        body, uses_last = self.blocks, False
        if last != step:
            body, uses_last = self.blocks - 1, total % step != 0
        mask = row.copy()
        mask[body:] = uses_last
        kept, missing = np.flatnonzero(mask[:body]), np.flatnonzero(~mask[:body])
        count = (total - last * uses_last) // step
        mask[kept[count:]] = False
        mask[missing[: max(count - len(kept), 0)]] = True
        return mask

    # Genes as text, for records

    def to_text(self, own: IntArray) -> str:
        """Its genes as text: counts as decimal numbers, subsets as hexadecimal digits of four genes each."""
        if self.is_count:
            return f"{self.name}={','.join(map(str, own.tolist()))}"
        return f"{self.name}=x" + np.packbits(own.astype(bool)).tobytes().hex()[: -(-len(own) // 4)]

    def from_text(self, text: str) -> IntArray:
        """Read what :meth:`to_text` wrote behind the ``=``."""
        count = self.stop - self.start
        if self.is_count:
            values = np.array([int(v) for v in text.split(",")] if _COUNTS.fullmatch(text) else [], dtype=np.int64)
            if len(values) == count and self.least <= values.min() and values.max() <= self.blocks:
                return values
            rule = f"{count} numbers within {self.least}..{self.blocks}"
        else:
            digits = -(-count // 4)
            if _HEX.fullmatch(text) and len(text) == 1 + digits:
                padded = text[1:] + "0" * (digits % 2)
                bits = np.unpackbits(np.frombuffer(bytes.fromhex(padded), dtype=np.uint8)).astype(np.int64)
                if not bits[count:].any():
                    return bits[:count]
            rule = f"x and {digits} hexadecimal digits for {count} choices"
        raise UserError(
            f"genes of {self.name} must be {rule}, got '{text}': they were written for another teacher or space"
        )


def bind_axes(space: SearchSpace, teacher: Architecture, scores: Mapping[str, UnitScores]) -> dict[str, BoundAxis]:
    """Bind every axis to a teacher, those the space does not choose along included."""
    axes: dict[str, BoundAxis] = {}
    start, wanted = 0, space.axes_of(teacher)
    for name in AXES:
        axis = wanted.get(name)
        # Where attention is pruned everywhere the best layer gets one head back, so layers need an order that means
        # something even when all are kept: that of the heads.
        ordering = axis or (wanted.get("heads") if name == "layers" else None)
        order = _order(name, teacher, scores[ordering.order if ordering else NATURAL])
        units = order.shape[-1]
        wide = name == "hidden" or (name == "neurons" and not teacher.structure.expert_size)
        step = axis.step if axis else 64 if wide else 1
        sizes = np.diff(np.append(np.arange(0, units, step), units)).astype(np.int64)
        if axis is None:
            axes[name] = BoundAxis(name, 1, sizes, order, is_count=True, least=len(sizes), free=False, start=start)
            continue
        if axis.least > units:
            rule = f"must be at most the teacher's {units}, got {axis.least}"
            raise UserError(f"space '{space.name}': axes.{name}.least {rule}: lower it in the space's file")
        rows, least = teacher.num_hidden_layers if axis.per == "layer" else 1, -(-axis.least // axis.step)
        axes[name] = BoundAxis(name, rows, sizes, order, axis.select == "count", least, free=True, start=start)
        start = axes[name].stop
    return axes


def ranking(scores: FloatArray) -> IntArray:
    """Indices along the last axis from the highest score to the lowest, equal scores in the teacher's order."""
    return np.argsort(-scores, axis=-1, kind="stable").astype(np.int64)


def _order(name: str, teacher: Architecture, scores: UnitScores) -> IntArray:
    if name != "queries":
        value = {"hidden": scores.hidden[None, :], "layers": scores.layers[None, :], "heads": scores.kv_heads}
        return ranking(value.get(name, scores.neurons))
    kv_heads = teacher.layers[0].num_key_value_heads
    grouped = scores.query_heads.reshape(teacher.num_hidden_layers, kv_heads, -1)
    return ranking(grouped) + np.arange(kv_heads)[None, :, None] * grouped.shape[-1]


def check_teacher(teacher: Architecture) -> None:
    """Check that units can be counted alike in every layer."""
    if not teacher.is_uniform:
        raise UserError(
            "a search needs a teacher whose layers all have the same sizes and skip nothing: search the model that "
            "this one came from"
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
        teacher.hidden_size, teacher.num_hidden_layers, shape.num_key_value_heads, shape.num_attention_heads,
        shape.intermediate_size,
    )  # fmt: skip
