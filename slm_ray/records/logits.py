"""Records of a logit store: what was asked for, the parts captured so far, and the manifest of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from slm_ray.records.base import Part, Record
from slm_ray.records.data import TokenSummary
from slm_ray.records.run import Environment


class CaptureRequest(Part):
    """All that a store's content depends on.

    Attributes:
        kind: ``top-k`` (with the mass of all other tokens) or ``sampled``.
        k: Tokens kept of every position, for ``top-k``.
        draws: Draws at every position, for ``sampled``.
        seed: Seed of the draws.
        temperature: What logits are divided by.
        documents: ``separate``: no token attends to another document; ``joined``: to all before it in its sequence.
        precision: ``fp32`` or ``bf16``.
        teacher_digest: See :class:`slm_ray.models.teachers.Teacher`.
        tokenizer_digest: See :func:`slm_ray.data.tokenizer_digest`.
        tokens_digest: Digest of the shards.
        vocab_size: Rows of the teacher's output head that its distribution is over: those of the tokenizer's ids.
            Models pad their vocabularies; the rows behind are no tokens.
        sequence_length: Tokens per sequence.
        num_sequences: Sequences that are captured.
        of_sequences: Sequences of the shards; of more than are captured, those that
            :func:`slm_ray.data.order.drawn_sequences` draws.
    """

    kind: str
    k: int | None
    draws: int | None
    seed: int | None
    temperature: float
    documents: str
    precision: str
    teacher_digest: str
    tokenizer_digest: str
    tokens_digest: str
    vocab_size: int
    sequence_length: int
    num_sequences: int
    of_sequences: int


class CaptureProgress(Record):
    """What an unfinished store is of."""

    FILE: ClassVar[str] = "request.json"
    request: CaptureRequest


class CapturedPart(Record):
    """One finished part of a store; its file's name is the part's with ``.json``.

    Attributes:
        name: The part's file.
        first: Its first sequence, counted among the captured ones.
        num_sequences: Sequences in it.
        num_values: Token ids stored in it.
        bytes: Size of the file.
        sha256: Its digest.
        seconds: What its capture took.
    """

    FILE: ClassVar[str] = "part.json"
    name: str
    first: int
    num_sequences: int
    num_values: int
    bytes: int
    sha256: str
    seconds: float


class StoreTeacher(Part):
    """Whose logits they are."""

    name: str
    licence: str


class StoreManifest(Record):
    """The manifest that makes a folder of parts a store.

    Attributes:
        digest: Equal contents have equal digests.
        request: What it holds.
        teacher: Whose logits they are.
        tokens: The shards they were captured on.
        num_tokens: Tokens that the teacher read.
        flops: What that cost.
        seconds: Of all workers together.
        environment: Where it was captured.
        parts: In order.
    """

    FILE: ClassVar[str] = "manifest.json"
    digest: str
    request: CaptureRequest
    teacher: StoreTeacher
    tokens: TokenSummary
    num_tokens: int
    flops: int
    seconds: float
    environment: Environment
    parts: tuple[CapturedPart, ...]


def work_folder(out: Path) -> Path:
    """Where a store grows until it is whole: beside its place, under its name and ``.partial``."""
    return out.with_name(f"{out.name}.partial")
