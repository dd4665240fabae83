"""A teacher's signal at every token: its hidden states and head, or a few ids with log-probabilities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.distill.config import FULL, SPARSE_KINDS


@dataclass(frozen=True)
class DenseSignal:
    """The teacher's whole distribution, not yet multiplied out."""

    hidden: torch.Tensor  # ``[tokens, teacher_hidden]`` the teacher's final hidden states
    # ``[vocabulary, teacher_hidden]`` its output head. Both may be of another type than the student's.
    head: torch.Tensor
    cap: float | None = None  # What its logits are capped to

    @property
    def kind(self) -> str:
        """The name of this kind of signal."""
        return FULL

    def check(self, num_tokens: int, vocab_size: int) -> None:
        """Refuse a signal that does not go with a student's batch; more or fewer rows of the head do.

        Raises:
            ValueError: The tensors' shapes do not go together.
        """
        if len(self.hidden) != num_tokens or self.hidden.shape[1:] != self.head.shape[1:]:
            raise ValueError(
                f"a dense signal for {num_tokens} tokens needs hidden [tokens, d] and head [vocabulary, d], "
                f"not {list(self.hidden.shape)} and {list(self.head.shape)}"
            )

    def rows(self, index: torch.Tensor) -> DenseSignal:
        """The signal at some of the tokens."""
        return DenseSignal(self.hidden[index], self.head, self.cap)


@dataclass(frozen=True)
class SparseSignal:
    """A few ids of the teacher's distribution at every token.

    In every kind a row is brought to sum to one before it is used, so probabilities may have been rounded for storage.
    Every token that counts has at least one used slot, and the used ids of a token differ from each other (draws of the
    same id are one slot with their weights added).
    """

    # ``top-k``: the head alone, renormalised; ``top-k-tail``: the head and one bucket with all the rest; ``sampled``:
    # drawn ids, with weights whose expectation is the teacher's distribution
    kind: str
    ids: torch.Tensor  # ``[tokens, k]`` int64. In unused slots any id of the vocabulary.
    log_probs: torch.Tensor  # ``[tokens, k]`` natural logarithms of probabilities or weights; -inf marks an unused slot
    # ``[tokens]``, for ``top-k-tail``: logarithm of what the head leaves, -inf where it is nothing
    tail_log_mass: torch.Tensor | None = None
    temperature: float = 1.0  # The softmax temperature the probabilities were taken at
    # The distribution is over the first ids of the vocabulary, so many; None: over all of the student's
    num_rows: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in SPARSE_KINDS:
            raise unknown_name("kind of sparse signal", self.kind, SPARSE_KINDS)
        if (self.tail_log_mass is None) == (self.kind == "top-k-tail"):
            raise ValueError(f"tail_log_mass belongs to top-k-tail and to no other kind, not to {self.kind}")
        if self.ids.shape != self.log_probs.shape or self.ids.dim() != 2:
            raise ValueError(f"ids and log_probs must be [tokens, k], not {self.ids.shape} and {self.log_probs.shape}")

    def check(self, num_tokens: int, vocab_size: int) -> None:
        """Refuse a signal that does not go with a student's batch.

        Raises:
            ValueError: The number of tokens is another one.
        """
        if len(self.ids) != num_tokens:
            raise ValueError(f"the signal is for {len(self.ids)} tokens, but there are {num_tokens}")
        if self.ids.shape[1] > vocab_size:
            raise UserError(
                f"k must be at most the vocabulary's size, but it is {self.ids.shape[1]:,} and the student has "
                f"{vocab_size:,} rows: use a smaller k"
            )
        if self.ids.numel() and (int(self.ids.max()) >= vocab_size or int(self.ids.min()) < 0):
            raise UserError(
                f"teacher and student must have one vocabulary, but the teacher names id {int(self.ids.max()):,} and "
                f"the student has {vocab_size:,} rows: use a teacher with the student's tokenizer"
            )

    def rows(self, index: torch.Tensor) -> SparseSignal:
        """The signal at some of the tokens."""
        tail = None if self.tail_log_mass is None else self.tail_log_mass[index]
        return dataclasses.replace(self, ids=self.ids[index], log_probs=self.log_probs[index], tail_log_mass=tail)

    def to(self, device: torch.device) -> SparseSignal:
        """The same signal on another device."""
        tail = None if self.tail_log_mass is None else self.tail_log_mass.to(device)
        ids, log_probs = self.ids.to(device), self.log_probs.to(device)
        return dataclasses.replace(self, ids=ids, log_probs=log_probs, tail_log_mass=tail)


TeacherSignal = DenseSignal | SparseSignal
