"""Unit scores on the disk: computed once per teacher, text and method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from slm_ray.config.digest import digest_json
from slm_ray.models.scores import UnitScores
from slm_ray.records.files import read_json, whole_folder, write_json

_SCORES_FILE, _MANIFEST_FILE = "scores.safetensors", "manifest.json"


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
