"""Stopping a measurement as soon as its outcome against a rival is decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_FEWEST_BLOCKS = 6


@dataclass(frozen=True)
class Rival:
    """The member of the front a candidate has to beat: the best of those that cost no more.

    Attributes:
        blocks: Its block losses over all calibration tokens, in nats.
    """

    blocks: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Its mean loss over all calibration tokens."""
        return float(np.mean(self.blocks))


def paired_difference(blocks: Sequence[float], rival: Rival) -> tuple[float, float]:
    """Mean and standard error of candidate minus rival over the blocks both have.

    The two are measured on the same tokens, so what makes a block hard for both cancels (common random numbers).
    """
    difference = np.asarray(blocks) - np.asarray(rival.blocks[: len(blocks)])
    stderr = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return float(difference.mean()), float(stderr)


def is_beaten(blocks: Sequence[float], rival: Rival | None, confidence: float) -> bool:
    """Whether a candidate is decided to be worse than its rival.

    Args:
        blocks: The candidate's block losses so far, in nats.
        rival: Whom it has to beat; None where there is nobody.
        confidence: One-sided confidence of the decision, in (0.5, 1).
    """
    if rival is None or len(blocks) < _FEWEST_BLOCKS or len(blocks) >= len(rival.blocks):
        return False
    mean, stderr = paired_difference(blocks, rival)
    return mean > NormalDist().inv_cdf(confidence) * stderr


def full_estimate(blocks: Sequence[float], rival: Rival | None) -> float:
    """The candidate's mean loss over all tokens, estimated from the part it was measured on.

    With a rival measured on all tokens, its known mean plus the paired difference (a control variate); else the mean.
    """
    if rival is None or len(blocks) >= len(rival.blocks):
        return float(np.mean(blocks))
    return rival.mean + paired_difference(blocks, rival)[0]
