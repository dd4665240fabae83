"""Block means of a measurement, and their mean with its standard error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_ray.records.search import Measurement

BLOCK_TOKENS = 64
_DIGITS = 5


def measured_on_all(record: dict[str, Any]) -> dict[str, Measurement]:
    """What a trial was measured at on all calibration tokens, by proxy; one that was beaten early was not."""
    if record["decided"] != "full":
        return {}
    return {name: Measurement.model_validate(entry) for name, entry in record["measurements"].items()}


def block_means(losses: NDArray[np.float64]) -> list[float]:
    """Mean loss of each block of one sequence.

    The blocks of a sequence are as near to 64 positions as lets them differ by at most one, so that the mean of their
    means is the mean loss.

    Args:
        losses: ``[positions]`` per-token losses in nats.

    Returns:
        One mean per block, rounded as records keep them, so that a resumed run compares the very same numbers.
    """
    blocks = np.array_split(losses, max(1, round(len(losses) / BLOCK_TOKENS)))
    return [round(float(block.mean()), _DIGITS) for block in blocks]


def mean_and_stderr(blocks: tuple[float, ...] | list[float]) -> tuple[float, float | None]:
    """Mean of block means and its standard error (None for fewer than two blocks)."""
    values = np.asarray(blocks, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
