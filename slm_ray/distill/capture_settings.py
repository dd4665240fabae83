"""What is kept of a teacher in a logit store, and what a store's content depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.data.shards import TokenShards
from slm_ray.distill.store_format import SAMPLED, STORE_KINDS, TOP_K
from slm_ray.models.teachers import Teacher
from slm_ray.records.architecture import Structure

DOCUMENTS = ("separate", "joined")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """What is kept of the teacher.

    Attributes:
        kind: ``top-k`` (with the mass of all other words) or ``sampled``.
        k: Words kept of every token, for ``top-k``.
        draws: Draws from the teacher's distribution, for ``sampled``.
        temperature: What logits are divided by.
        seed: Of the draws.
        documents: ``separate``: no token attends to another document; ``joined``: to all before it in its sequence.
        precision: ``fp32`` or ``bf16``.
    """

    kind: str
    k: int = 32
    draws: int = 50
    temperature: float = 1.0
    seed: int = 0
    documents: str = "separate"
    precision: str = "fp32"

    def check(self, teacher: Structure, sequence_length: int) -> None:
        """Check everything against the rules, and against the teacher's vocabulary and positions.

        Raises:
            UserError: A value breaks its rule.
        """
        vocab_size, most = teacher.vocab_size, teacher.max_position_embeddings
        for what, name, names in (
            ("kind of logit store", self.kind, STORE_KINDS),
            ("way with documents", self.documents, DOCUMENTS),
            ("precision", self.precision, tuple(PRECISIONS)),
        ):
            if name not in names:
                raise unknown_name(what, name, names)
        if self.kind == TOP_K and not 1 <= self.k <= vocab_size:
            raise UserError(f"--k must be from 1 to the teacher's {vocab_size:,} words, got {self.k:,}")
        if self.kind == SAMPLED and not 1 <= self.draws <= np.iinfo(np.uint16).max:
            raise UserError(f"--draws must be from 1 to {np.iinfo(np.uint16).max:,}, got {self.draws:,}")
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise UserError(f"--temperature must be above 0 and finite, got {self.temperature:g}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")
        if sequence_length > most:
            raise UserError(
                f"--sequence-length {sequence_length} is over the teacher's {most} positions: give {most} or less"
            )

    def request(self, teacher: Teacher, shards: TokenShards) -> dict[str, Any]:
        """All that a store's content depends on, as JSON-like values."""
        own = {"k": self.k} if self.kind == TOP_K else {"draws": self.draws, "seed": self.seed}
        return {
            "kind": self.kind,
            **own,
            "temperature": float(self.temperature),
            "documents": self.documents,
            "precision": self.precision,
            "teacher_digest": teacher.digest,
            "tokenizer_digest": shards.tokenizer_digest,
            "tokens_digest": shards.digest,
            "vocab_size": teacher.architecture().structure.vocab_size,
            "sequence_length": shards.sequence_length,
            "num_sequences": shards.num_sequences,
        }
