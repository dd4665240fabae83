"""Which genes belong together, what they are called, and what a step of each costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slm_ray.search.axes import BoundAxis, IntArray
from slm_ray.search.sizing import CostModel, Sizes


@dataclass(frozen=True)
class GeneGroup:
    """Genes ``start..stop-1``: one choice along one axis.

    Attributes:
        axis: The axis's name.
        layer: The teacher's layer the choice is made in; None where it is one for the model.
        start: The first gene.
        stop: One past the last.
        select: ``count``: one gene, a number of blocks; ``subset``: one bit per block, the best-ranked first.
    """

    axis: str
    layer: int | None
    start: int
    stop: int
    select: str


def gene_groups(axis: BoundAxis) -> list[GeneGroup]:
    """The groups of an axis's genes, one per choice."""
    select, size = ("count" if axis.prefix else "subset"), axis.genes_per_row
    starts = [axis.start + row * size for row in range(axis.rows)]
    return [
        GeneGroup(axis.name, row if axis.per_layer else None, start, start + size, select)
        for row, start in enumerate(starts)
    ]


def gene_names(group: GeneGroup, axis: BoundAxis) -> list[str]:
    """What the genes of a group are called, such as ``neurons.layer3.block7``."""
    where = group.axis if group.layer is None else f"{group.axis}.layer{group.layer}"
    if group.select == "count":
        return [where]
    if _switches_layers(group, axis):
        return [f"layers.layer{layer}" for layer in axis.order[0]]
    return [f"{where}.block{block}" for block in range(group.stop - group.start)]


def gene_layers(group: GeneGroup, axis: BoundAxis) -> list[int]:
    """The teacher's layer that each gene of a group acts in, or switches; -1 where it acts in several."""
    if _switches_layers(group, axis):
        return [int(layer) for layer in axis.order[0]]
    return [-1 if group.layer is None else group.layer] * (group.stop - group.start)


def _switches_layers(group: GeneGroup, axis: BoundAxis) -> bool:
    return group.axis == "layers" and group.select == "subset" and bool(axis.sizes[0] == 1)


def gene_deltas(axes: Mapping[str, BoundAxis], cost: CostModel, whole: Sizes) -> IntArray:
    """``[genes]``: what a step of each gene costs in the whole teacher, whose sizes are ``whole``."""
    rates, layers = cost.rates(whole.hidden), len(whole.kept)
    queries, kv_heads = int(whole.queries[0]), int(whole.kv_heads[0])
    hidden_step = int(axes["hidden"].sizes[0])
    narrower = cost.of_sizes(whole, whole.hidden - hidden_step) if whole.hidden > hidden_step else 0
    unit = {
        "hidden": (cost.of_sizes(whole) - narrower) / hidden_step,
        "layers": sum(int(part[0]) for part in cost.sublayers(whole)),
        "heads": int(rates.heads[queries]),
        "queries": kv_heads * int(rates.heads[queries] - rates.heads[queries - 1]) if queries > 1 else 0,
        "neurons": rates.neuron,
    }
    parts = [np.zeros(0, dtype=np.int64)]
    for axis in axes.values():
        if axis.free:
            times = layers if axis.name in ("heads", "queries", "neurons") and not axis.per_layer else 1
            blocks = axis.sizes[:1] if axis.prefix else axis.sizes
            parts.append(np.rint(np.tile(blocks * unit[axis.name] * times, axis.rows)).astype(np.int64))
    return np.concatenate(parts)
