"""What a proxy gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 64
_DIGITS = 5


@dataclass(frozen=True)
class Measurement:
    """One measured value.

    Attributes:
        value: The value, in the proxy's unit.
        stderr: Its standard error, or None where it has none.
        tokens: Tokens it was measured on (0: none were needed).
        seconds: Wall time it took.
        blocks: Mean loss of each consecutive block of about 64 predicted positions, in nats; empty for other proxies.
            Paired differences between candidates are made of these.
    """

    value: float
    stderr: float | None
    tokens: int
    seconds: float
    blocks: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The measurement as it stands in a trial's record."""
        entry: dict[str, Any] = {
            "value": float(f"{self.value:.7g}"),
            "stderr": None if self.stderr is None else float(f"{self.stderr:.4g}"),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
        }
        return entry | ({"blocks": [round(block, _DIGITS) for block in self.blocks]} if self.blocks else {})

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Measurement:
        """Read what :meth:`to_json` wrote."""
        return cls(entry["value"], entry["stderr"], entry["tokens"], entry["seconds"], tuple(entry.get("blocks", ())))


def measured_on_all(record: dict[str, Any]) -> dict[str, Measurement]:
    """What a trial was measured at on all calibration tokens, by proxy; one that was beaten early was not."""
    if record["decided"] != "full":
        return {}
    return {name: Measurement.from_json(entry) for name, entry in record["measurements"].items()}


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
