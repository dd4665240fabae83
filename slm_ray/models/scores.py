"""Scores of a teacher's units, and their cache: computed once per teacher, text and method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slm_ray.config.digest import digest_json
from slm_ray.records.files import read_json, whole_folder, write_json

_SCORES_FILE, _MANIFEST_FILE = "scores.safetensors", "manifest.json"
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


def save_scores(folder: Path, scores: UnitScores, key: dict[str, Any]) -> None:
    """Write scores and what they were made from; the folder appears whole or not at all."""
    with whole_folder(folder) as temporary:
        save_file(scores.arrays(), temporary / _SCORES_FILE)
        write_json(temporary / _MANIFEST_FILE, {"key": key, "method": scores.method, "comparable": scores.comparable})


def read_scores(folder: Path) -> UnitScores:
    """Read what :func:`save_scores` wrote.

    Raises:
        UserError: The manifest is damaged.
        SafetensorError: The scores are damaged.
    """
    manifest = read_json(folder / _MANIFEST_FILE)
    arrays = load_file(folder / _SCORES_FILE)
    return UnitScores.from_arrays(manifest["method"], arrays, comparable=manifest["comparable"])


def cached_scores(
    cache: Path, key: dict[str, Any], compute: Callable[[], list[UnitScores]]
) -> tuple[list[UnitScores], bool]:
    """Scores made from ``key``: read if they were made before, else computed and kept.

    Args:
        cache: The cache folder.
        key: Everything the scores depend on: digests of teacher and tokens, method, settings.
        compute: Makes them.

    Returns:
        The scores, and whether they were read from the cache.
    """
    base = cache / "importance" / digest_json(key)
    try:
        count = read_json(base / "count.json") if (base / "count.json").is_file() else 0
        if count:
            return [read_scores(base / str(number)) for number in range(count)], True
    except (SafetensorError, KeyError, OSError, TypeError, ValueError):
        pass  # damaged: computed again below and replaced
    found = compute()
    for number, scores in enumerate(found):
        save_scores(base / str(number), scores, key)
    write_json(base / "count.json", len(found))
    return found, False
