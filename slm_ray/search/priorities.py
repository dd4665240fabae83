"""In which order units are pruned and added: a score per block, and how scores of different blocks compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slm_ray.models.scores import UnitScores
from slm_ray.search.axes import BoundAxis, FloatArray


@dataclass(frozen=True, eq=False)
class Priorities:
    """What each block is worth."""

    hidden: FloatArray  # ``[blocks]``
    layers: FloatArray  # ``[layers]``, by the teacher's layer index
    heads: FloatArray  # ``[layers, blocks]``
    queries: FloatArray  # ``[layers, head blocks, query blocks]``
    neurons: FloatArray  # ``[layers, blocks]``
    # Worth is divided by cost to compare blocks (scores that estimate one and the same loss); else it is compared as it
    # is (ranks, random numbers)
    per_cost: bool

    @classmethod
    def from_scores(cls, axes: Mapping[str, BoundAxis], scores: UnitScores) -> Priorities:
        """Priorities by importance.

        Comparable scores are kept, and compared per unit of cost. Of others only the ranks within a layer mean
        anything: each block is worth the share of its own kind, in its own layer, that it beats.
        """
        blocks = _block_scores(axes, scores)
        if scores.comparable:
            return cls(**blocks, per_cost=True)
        return cls(**{name: _mid_ranks(block) for name, block in blocks.items()}, per_cost=False)

    @classmethod
    def at_random(cls, axes: Mapping[str, BoundAxis], rng: np.random.Generator) -> Priorities:
        """Priorities drawn uniformly: units are pruned and added in random order."""
        layers, heads = len(axes["heads"].order), axes["heads"].blocks
        return cls(
            hidden=rng.random(axes["hidden"].blocks),
            layers=rng.random(layers),
            heads=rng.random((layers, heads)),
            queries=rng.random((layers, heads, axes["queries"].blocks)),
            neurons=rng.random((layers, axes["neurons"].blocks)),
            per_cost=False,
        )


def _block_scores(axes: Mapping[str, BoundAxis], scores: UnitScores) -> dict[str, FloatArray]:
    """Scores per block, at the blocks' positions along each axis's own order."""
    heads, queries = axes["heads"], axes["queries"]
    ranked = scores.query_heads[np.arange(len(scores.kv_heads))[:, None, None], queries.order]
    ranked = np.take_along_axis(ranked, heads.order[:, :, None], axis=1)
    units = {"hidden": scores.hidden[None, :], "heads": scores.kv_heads, "neurons": scores.neurons}
    summed = {
        name: axes[name].sum_blocks(np.take_along_axis(value, axes[name].order, axis=-1))
        for name, value in units.items()
    }
    return {
        "hidden": summed["hidden"][0],
        "layers": np.asarray(scores.layers, dtype=np.float64),
        "heads": summed["heads"],
        "queries": heads.sum_blocks(queries.sum_blocks(ranked, along=2), along=1),
        "neurons": summed["neurons"],
    }


def _mid_ranks(scores: FloatArray) -> FloatArray:
    """The share of its own row that each score beats, its own half included: ``1 - 0.5 / n`` for the best of ``n``."""
    count = scores.shape[-1]
    places = np.argsort(np.argsort(-scores, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.asarray((count - places - 0.5) / count, dtype=np.float64)
