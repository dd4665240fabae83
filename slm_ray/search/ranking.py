"""In which order units are dropped and added: a score per block, and how scores of different blocks compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slm_ray.models.scores import UnitScores
from slm_ray.search.axes import BoundAxis, FloatArray


@dataclass(frozen=True, eq=False)
class Priorities:
    """What each block is worth.

    Attributes:
        hidden: ``[blocks]``.
        layers: ``[layers]``, by the teacher's layer index.
        heads: ``[layers, blocks]``.
        queries: ``[layers, head blocks, query blocks]``.
        neurons: ``[layers, blocks]``.
        whole_layers: ``[layers]``, the worth of all heads and neurons of a layer, untilted.
        per_cost: Worth is divided by cost to compare blocks (scores that estimate one and the same loss); else it is
            compared as it is (ranks, random numbers).
    """

    hidden: FloatArray
    layers: FloatArray
    heads: FloatArray
    queries: FloatArray
    neurons: FloatArray
    whole_layers: FloatArray
    per_cost: bool

    def tilted(self, heads: FloatArray | None, neurons: FloatArray | None) -> Priorities:
        """These priorities with each layer's heads and neurons worth this many times as much (``[layers]`` each)."""
        many_heads = np.ones(len(self.heads)) if heads is None else np.asarray(heads, dtype=np.float64)
        many_neurons = np.ones(len(self.neurons)) if neurons is None else np.asarray(neurons, dtype=np.float64)
        for tilt in (many_heads, many_neurons):
            if tilt.shape != self.layers.shape or not np.all(np.isfinite(tilt)) or np.any(tilt < 0):
                raise ValueError(f"a tilt must hold {len(self.layers)} finite numbers of at least 0, got {tilt}")
        return Priorities(
            self.hidden,
            self.layers,
            self.heads * many_heads[:, None],
            self.queries * many_heads[:, None, None],
            self.neurons * many_neurons[:, None],
            self.whole_layers,
            self.per_cost,
        )


def _block_scores(axes: Mapping[str, BoundAxis], scores: UnitScores) -> dict[str, FloatArray]:
    """Scores per block, at the blocks' positions along each axis's own order."""
    layers = len(scores.kv_heads)
    heads, queries = axes["heads"], axes["queries"]
    grouped = scores.query_heads[np.arange(layers)[:, None, None], queries.order]
    grouped = np.take_along_axis(grouped, heads.order[:, :, None], axis=1)
    for axis, along in ((queries, 2), (heads, 1)):
        starts = np.concatenate([[0], np.cumsum(axis.sizes)[:-1]])
        grouped = np.add.reduceat(grouped, starts, axis=along)
    return {
        "hidden": axes["hidden"].block_sums(scores.hidden[None, :])[0],
        "layers": np.asarray(scores.layers, dtype=np.float64),
        "heads": heads.block_sums(scores.kv_heads),
        "queries": grouped,
        "neurons": axes["neurons"].block_sums(scores.neurons),
    }


def _mid_ranks(scores: FloatArray) -> FloatArray:
    """The share of its own row that each score beats, its own half included: ``1 - 0.5 / n`` for the best of ``n``."""
    count = scores.shape[-1]
    places = np.argsort(np.argsort(-scores, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.asarray((count - places - 0.5) / count, dtype=np.float64)


def _priorities(blocks: Mapping[str, FloatArray], per_cost: bool) -> Priorities:
    whole = blocks["heads"].sum(axis=1) + blocks["neurons"].sum(axis=1)
    return Priorities(whole_layers=whole, per_cost=per_cost, **blocks)


def priorities_from_scores(axes: Mapping[str, BoundAxis], scores: UnitScores) -> Priorities:
    """Priorities by importance.

    Comparable scores are kept, and compared per unit of cost. Of others only the ranks within a layer mean anything:
    each block is worth the share of its own kind, in its own layer, that it beats.
    """
    blocks = _block_scores(axes, scores)
    if scores.comparable:
        return _priorities(blocks, per_cost=True)
    return _priorities({name: _mid_ranks(block) for name, block in blocks.items()}, per_cost=False)


def random_priorities(axes: Mapping[str, BoundAxis], rng: np.random.Generator) -> Priorities:
    """Priorities drawn uniformly: units are dropped and added in random order."""
    layers, heads = len(axes["heads"].order), axes["heads"].blocks
    shapes: dict[str, tuple[int, ...]] = {
        "hidden": (axes["hidden"].blocks,),
        "layers": (layers,),
        "heads": (layers, heads),
        "queries": (layers, heads, axes["queries"].blocks),
        "neurons": (layers, axes["neurons"].blocks),
    }
    return _priorities({name: rng.random(shape) for name, shape in shapes.items()}, per_cost=False)
