"""Proxies that need no forward pass: sums of unit scores over what a candidate keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from slm_ray.models.scores import UnitScores
from slm_ray.records.subnet import SubnetSpec


def _kept_sum(spec: SubnetSpec, scores: UnitScores) -> float:
    total = 0.0
    for layer in spec.layers:
        total += float(scores.kv_heads[layer.source, list(layer.kv_heads)].sum())
        total += float(scores.neurons[layer.source, list(layer.neurons)].sum())
    return total


def importance_lost(spec: SubnetSpec, scores: UnitScores) -> float:
    """Sum of the scores of all dropped heads, neurons and residual channels; with Taylor scores the expected loss rise.

    ``scores``: Comparable unit scores, in nats per token.
    """
    whole = float(scores.kv_heads.sum() + scores.neurons.sum() + scores.hidden.sum())
    return whole - _kept_sum(spec, scores) - float(scores.hidden[list(spec.hidden)].sum())


def magnitude_kept(spec: SubnetSpec, scores: UnitScores) -> float:
    """Share of the squared weight norm of heads and neurons that is kept, in 0..1."""
    squared = UnitScores(
        scores.method, scores.hidden, scores.layers, np.square(scores.kv_heads), scores.query_heads,
        np.square(scores.neurons), scores.comparable,
    )  # fmt: skip
    return _kept_sum(spec, squared) / float(squared.kv_heads.sum() + squared.neurons.sum())


def block_influence_kept(spec: SubnetSpec, scores: UnitScores) -> float:
    """Sum of the block influence of the layers that are kept (ShortGPT, arXiv 2403.03853)."""
    return float(scores.layers[[layer.source for layer in spec.layers]].sum())


SCORE_SUMS: Mapping[str, Callable[[SubnetSpec, UnitScores], float]] = {
    "importance": importance_lost, "magnitude": magnitude_kept, "block_influence": block_influence_kept,
}  # fmt: skip
"""The proxies by name."""
