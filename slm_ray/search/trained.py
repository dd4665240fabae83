"""What short training gives, and the settings that suit small budgets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# SmolLM2-135M cut to half its size, on 8k tokens: three steps of four sequences at pretraining's 1e-3 make it worse
# (held-out loss 3.96 to 4.29), at 2e-4 better (3.85); single sequences give 3.78 at 2e-4, 3.79 at 5e-4, 3.83 at 1e-4.
LEARNING_RATE = 2e-4
_FEWEST_STEPS, _MOST_SEQUENCES = 32, 8


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


def batch_size_of(tokens: float, sequence_length: int) -> int:
    """Sequences of a step of short training: few enough for 32 steps, at most pretraining's 8.

    Args:
        tokens: The budget.
        sequence_length: Tokens per sequence.
    """
    return min(_MOST_SEQUENCES, max(1, int(tokens) // (_FEWEST_STEPS * sequence_length)))
