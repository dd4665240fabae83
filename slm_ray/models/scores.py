"""How much each of a teacher's units matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
SCORE_ARRAYS = ("hidden", "layers", "kv_heads", "query_heads", "neurons")


@dataclass(frozen=True)
class UnitScores:
    """One score per unit of the teacher; higher matters more.

    Attributes:
        method: How they were made: ``natural``, ``magnitude``, ``activation`` or ``taylor``.
        hidden: ``[hidden_size]``, one per residual channel.
        layers: ``[layers]``, one per whole layer.
        kv_heads: ``[layers, kv_heads]``, one per key-value head with its query heads.
        query_heads: ``[layers, heads]``, one per query head.
        neurons: ``[layers, intermediate_size]``, one per MLP neuron.
        comparable: Scores divided by the parameters a unit holds may be compared across layers and axes (true of Taylor
            scores, which estimate the same loss; not of norms, whose scale differs from layer to layer).
    """

    method: str
    hidden: FloatArray
    layers: FloatArray
    kv_heads: FloatArray
    query_heads: FloatArray
    neurons: FloatArray
    comparable: bool

    def arrays(self) -> dict[str, FloatArray]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in SCORE_ARRAYS}

    @classmethod
    def from_arrays(cls, method: str, arrays: Mapping[str, FloatArray], *, comparable: bool) -> UnitScores:
        """Scores out of arrays by name."""
        chosen = {name: arrays[name] for name in SCORE_ARRAYS}
        return cls(method=method, **chosen, comparable=comparable)


def natural_scores(
    hidden_size: int, num_layers: int, num_kv_heads: int, num_heads: int, num_neurons: int
) -> UnitScores:
    """Scores that keep the first units first: unit ``i`` of ``n`` scores ``n - i``."""

    def falling(n: int) -> FloatArray:
        return np.arange(n, 0, -1, dtype=np.float64)

    return UnitScores(
        method="natural",
        hidden=falling(hidden_size),
        layers=falling(num_layers),
        kv_heads=np.tile(falling(num_kv_heads), (num_layers, 1)),
        query_heads=np.tile(falling(num_heads), (num_layers, 1)),
        neurons=np.tile(falling(num_neurons), (num_layers, 1)),
        comparable=False,
    )
