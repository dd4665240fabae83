"""Options for what is learned from a teacher; nothing here imports torch."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import model_validator

from slm_ray.config.base import Config, option
from slm_ray.config.errors import UserError, unknown_name

FULL, TOP_K, TOP_K_TAIL, SAMPLED = "full", "top-k", "top-k-tail", "sampled"
SPARSE_KINDS = (TOP_K, TOP_K_TAIL, SAMPLED)
KINDS = (FULL, *SPARSE_KINDS)

Loss = Literal["forward_kl", "reverse_kl", "symmetric", "jensen_shannon", "total_variation", "soft_ce"]
DIVERGENCES: tuple[str, ...] = get_args(Loss)
WeightSchedule = Literal["constant", "linear", "wsd"]

_LINEAR = ("forward_kl", "soft_ce")  # in the teacher's probabilities, up to its own entropy
# Losses that a kind of signal cannot be used with, and why.
_REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    TOP_K: (
        ("reverse_kl", "symmetric"),
        "infinite with top-k targets, which give the other tokens no probability",
    ),
    SAMPLED: (
        tuple(name for name in DIVERGENCES if name not in _LINEAR),
        "biased with sampled targets, because it is not linear in the teacher's probabilities",
    ),
}


def check_loss(loss: str, kind: str) -> None:
    """Refuse a divergence that would be infinite or biased with a kind of signal.

    Args:
        loss: One of ``DIVERGENCES``.
        kind: One of ``KINDS``.

    Raises:
        UserError: They do not go together, or a name is unknown; the message names what can be used.
    """
    if loss not in DIVERGENCES:
        raise unknown_name("loss", loss, DIVERGENCES)
    if kind not in KINDS:
        raise unknown_name("kind of distillation", kind, KINDS)
    names, reason = _REFUSED.get(kind, ((), ""))
    if loss in names:
        rest = ", ".join(name for name in DIVERGENCES if name not in names)
        raise UserError(f"loss {loss} is {reason}: use one of {rest}, or full or top-k-tail distillation")


class DistillConfig(Config):
    """The teacher's signal and its share of the loss. ``distill`` is None where it was not given."""

    distill: Literal["none", "full", "top-k", "top-k-tail", "sampled"] | None = option(
        None, "the teacher's signal [default: full; none with --scratch and no --teacher]"
    )
    store: str | None = option(None, "logit store to distill from (slm-ray logits)")
    loss: Loss = option("forward_kl", "divergence from the teacher")
    temperature: float = option(1.0, "temperature of the divergence", gt=0)
    kd_weight: float = option(0.7, "weight of the divergence; cross-entropy gets the rest", ge=0, le=1)
    kd_schedule: WeightSchedule = option("constant", "how that weight moves")

    @property
    def from_store(self) -> bool:
        """Whether the signal is read from a logit store."""
        return self.distill in SPARSE_KINDS

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.store and not self.from_store:
            raise ValueError(f"--store is given, but --distill {self.distill or FULL} reads none: give --distill top-k")
        if self.distill != "none":
            try:
                check_loss(self.loss, self.distill or FULL)
            except UserError as error:
                raise ValueError(f"--loss: {error}") from None
        return self
