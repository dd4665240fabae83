"""Figures of one model on held-out text, and of two models on the same text: pure functions of sums per sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# A difference of fewer standard errors is called noise; 2 is close to the 95% interval of a normal distribution.
NOISE_STANDARD_ERRORS = 2.0
WITHIN_NOISE, BETTER, WORSE, UNKNOWN = "within the noise", "better", "worse", "noise not known"

Sums = npt.NDArray[np.float64]


def ratio_stderr(totals: Sums, counts: Sums) -> float | None:
    """The standard error of ``sum(totals) / sum(counts)`` over sequences (delta method); None for a single sequence.

    Args:
        totals: ``[sequences]`` sums of what is averaged, e.g. losses, or differences of two models' losses.
        counts: ``[sequences]`` how many there were of each.
    """
    number, all_counts = len(totals), counts.sum()
    if number < 2 or all_counts == 0:
        return None
    residuals = totals - totals.sum() / all_counts * counts
    return float(np.sqrt((residuals**2).sum() * number / (number - 1)) / all_counts)


def verdict(difference: float, stderr: float | None) -> str:
    """What to call a difference in loss, or in bits per byte: less is better."""
    if stderr is None:
        return UNKNOWN
    if abs(difference) <= NOISE_STANDARD_ERRORS * stderr:
        return WITHIN_NOISE
    return WORSE if difference > 0 else BETTER


@dataclass(frozen=True)
class Measured:
    """One model's sums on held-out text.

    Attributes:
        name: The model.
        tokens_digest: Digest of the tokens; equal where two models read the same.
        losses: ``[sequences]`` sums of losses, nats.
        counts: ``[sequences]`` predicted tokens.
        bits_per_byte: See :class:`slm_ray.evaluate.held_out.HeldOutLoss`.
    """

    name: str
    tokens_digest: str
    losses: Sums
    counts: Sums
    bits_per_byte: float

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return float(self.losses.sum() / max(self.counts.sum(), 1))

    @property
    def stderr(self) -> float | None:
        """Standard error of the loss over sequences."""
        return ratio_stderr(self.losses, self.counts)

    @property
    def bits_per_byte_stderr(self) -> float | None:
        """Standard error of the bits per byte."""
        return None if self.stderr is None or not self.loss else self.stderr * self.bits_per_byte / self.loss

    def figures(self) -> dict[str, Any]:
        """What the record says, JSON-like; a perplexity that is no float is null."""
        perplexity = math.exp(self.loss) if self.loss < 700 else None
        stderr = None if perplexity is None or self.stderr is None else perplexity * self.stderr
        return {
            "loss": self.loss, "loss_stderr": self.stderr, "perplexity": perplexity, "perplexity_stderr": stderr,
            "bits_per_byte": self.bits_per_byte, "bits_per_byte_stderr": self.bits_per_byte_stderr,
            "tokens": int(self.counts.sum()), "sequences": len(self.counts),
        }  # fmt: skip


def compare(model: Measured, first: Measured) -> dict[str, Any]:
    """A model against the first one.

    On the same tokens the losses are compared, in pairs of the same sequence, so that what makes a sequence hard for
    both cancels out. With different tokenizers the bits per byte are, as if the two errors were independent, which
    overstates the noise.

    Returns:
        ``quantity``, ``paired``, ``difference`` (model less first), ``stderr``, ``verdict``.
    """
    if model.tokens_digest == first.tokens_digest:
        difference = model.loss - first.loss
        stderr = ratio_stderr(model.losses - first.losses, model.counts)
        quantity, paired = "loss", True
    else:
        difference = model.bits_per_byte - first.bits_per_byte
        errors = (model.bits_per_byte_stderr, first.bits_per_byte_stderr)
        stderr = None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])
        quantity, paired = "bits_per_byte", False
    return {
        "to": first.name, "quantity": quantity, "paired": paired, "difference": difference, "stderr": stderr,
        "verdict": verdict(difference, stderr),
    }  # fmt: skip
