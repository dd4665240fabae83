"""What short training gives, and the size of its steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STEP_TOKENS = 2048  # of one optimiser step: a short budget has to give steps enough to learn in


@dataclass(frozen=True)
class Trained:
    """What the short training of one sub-network gave.

    Attributes:
        tokens: Tokens it was trained on.
        first_loss: Loss before, on text that is not trained on, nats per token.
        loss: Loss after; None where the training failed.
        flops: The student's and the teacher's, both evaluations included.
        seconds: Of the training steps.
        error: Why it failed.
    """

    tokens: int
    first_loss: float | None
    loss: float | None
    flops: float
    seconds: float
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``Trained(**values)`` reads them back."""
        return asdict(self)

    def to_record(self) -> dict[str, Any]:
        """What the results of a search say of it."""
        record: dict[str, Any] = {"tokens": self.tokens, "loss": self.loss, "first_loss": self.first_loss}
        return record | ({"error": self.error} if self.error else {})


def batch_size_of(sequence_length: int) -> int:
    """Sequences of a step of short training."""
    return max(1, STEP_TOKENS // sequence_length)
