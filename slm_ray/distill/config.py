"""Options for what is learned from a teacher; nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, get_args

from pydantic import model_validator

from slm_ray.config.base import Config, Text, option
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.units import parse_number
from slm_ray.data.config import TrainDataConfig
from slm_ray.models.bundled import TEACHER_HELP
from slm_ray.runtime.storage import STORAGE_HELP

if TYPE_CHECKING:
    from slm_ray.data.shards import TokenShards

FULL, TOP_K, TOP_K_TAIL, SAMPLED = "full", "top-k", "top-k-tail", "sampled"
SPARSE_KINDS = (TOP_K, TOP_K_TAIL, SAMPLED)
KINDS = (FULL, *SPARSE_KINDS)

Loss = Literal["forward_kl", "reverse_kl", "symmetric", "jensen_shannon", "total_variation", "soft_ce"]
DIVERGENCES: tuple[str, ...] = get_args(Loss)
DEFAULT_TOKENS = "300k"
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
    """Refuse a divergence that would be infinite or biased with a kind of signal."""
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


class CaptureConfig(Config):
    """What is kept of a teacher in a logit store."""

    kind: Literal["top-k", "sampled"] = option(
        "top-k", "the likeliest tokens and the mass of the rest, or drawn tokens"
    )
    k: int = option(32, "tokens kept of a position, for top-k", ge=1)
    draws: int = option(50, "draws at a position, for sampled", ge=1, le=65535)
    temperature: float = option(1.0, "softmax temperature of the teacher", gt=0)
    seed: int = option(0, "seed of the draws", ge=0)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "compute type; auto: bf16 where it is multiplied natively"
    )


class LogitsConfig(Config):
    """The options of a capture."""

    teacher: str = option("smollm2-135m", TEACHER_HELP)
    student: str | None = option(None, "a student with fewer tokens than its teacher: the signal is over its ids")
    text: TrainDataConfig
    tokens: Text | None = option(
        None, f"tokens to capture: 300k, 20M, all [default: {DEFAULT_TOKENS}; all of --shards]"
    )
    capture: CaptureConfig
    device: Literal["cpu", "cuda"] = option("cpu", "where the teacher runs; cuda: one GPU per worker")
    workers: int | None = option(None, "teachers at once [default: usable CPUs / threads]", ge=1)
    threads: int = option(1, "threads, and CPUs, of each worker", ge=1)
    address: str | None = option(None, "Ray cluster to join, e.g. auto [default: start one here]")
    storage: str | None = option(None, STORAGE_HELP.replace("--resume", "the same command"))
    out: str | None = option(None, "the store's folder")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        text = TrainDataConfig()
        changed = [name for name in ("data", "text_field") if getattr(self.text, name) != getattr(text, name)]
        if self.text.shards and changed:
            raise ValueError(
                f"--{changed[0].replace('_', '-')} and --shards are both given: prepared shards have their own text; "
                "leave one out"
            )
        try:
            _ = self.num_tokens
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def num_tokens(self) -> int | None:
        """Tokens to capture; None for all there are."""
        given = self.tokens or ("all" if self.text.shards else DEFAULT_TOKENS)
        if given == "all":
            return None
        count = 0 if "%" in given else int(parse_number(given))
        if count < 1:
            raise UserError(f"--tokens must be a count like 300k or 20M, or all, got '{given}'")
        return count

    def num_sequences(self, sequence_length: int, available: int | None) -> int | None:
        """Sequences to capture, whole ones with at least the tokens wanted; None for all of a text."""
        wanted = None if self.num_tokens is None else -(-self.num_tokens // sequence_length)
        return min((count for count in (wanted, available) if count is not None), default=None)


def different_length(shards: TokenShards, length: int) -> str:
    """The sentence for shards of another sequence length than is given."""
    return (
        f"the shards in {shards.folder} have sequences of {shards.sequence_length} tokens, not {length}: give "
        f"--sequence-length {shards.sequence_length}"
    )
