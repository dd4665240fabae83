"""Records of a logit store: what was asked for, the parts captured so far, and the manifest of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from slm_ray.records.base import Part, Record
from slm_ray.records.data import TokenSummary
from slm_ray.records.run import Environment


class CaptureRequest(Part):
    """All that a store's content depends on."""

    kind: str  # ``top-k`` (with the mass of all other tokens) or ``sampled``
    k: int | None  # Tokens kept of every position, for ``top-k``
    draws: int | None  # Draws at every position, for ``sampled``
    seed: int | None  # Seed of the draws
    temperature: float  # What logits are divided by
    documents: str  # ``separate``: no token attends to another document; ``joined``: to all before it in its sequence
    precision: str  # ``fp32`` or ``bf16``
    teacher_digest: str  # See :class:`slm_ray.models.teachers.Teacher`
    tokenizer_digest: str  # See :func:`slm_ray.data.tokenizer_digest`
    tokens_digest: str  # Digest of the shards
    # Rows of the teacher's output head that its distribution is over: those of the tokenizer's ids. Models pad their
    # vocabularies; the rows behind are no tokens.
    vocab_size: int
    sequence_length: int  # Tokens per sequence
    num_sequences: int  # Sequences that are captured
    # Sequences of the shards; of more than are captured, those that :func:`slm_ray.data.order.drawn_sequences` draws
    of_sequences: int


class CaptureProgress(Record):
    """What an unfinished store is of."""

    FILE: ClassVar[str] = "request.json"
    request: CaptureRequest


class CapturedPart(Record):
    """One finished part of a store; its file's name is the part's with ``.json``."""

    FILE: ClassVar[str] = "part.json"
    name: str  # The part's file
    first: int  # Its first sequence, counted among the captured ones
    num_sequences: int  # Sequences in it
    num_values: int  # Token ids stored in it
    bytes: int  # Size of the file
    sha256: str  # Its digest
    seconds: float  # What its capture took


class StoreTeacher(Part):
    """Whose logits they are."""

    name: str
    licence: str


class StoreManifest(Record):
    """The manifest that makes a folder of parts a store."""

    FILE: ClassVar[str] = "manifest.json"
    digest: str  # Equal contents have equal digests
    request: CaptureRequest  # What it holds
    teacher: StoreTeacher  # Whose logits they are
    tokens: TokenSummary  # The shards they were captured on
    num_tokens: int  # Tokens that the teacher read
    flops: int  # What that cost
    seconds: float  # Of all workers together
    environment: Environment  # Where it was captured
    parts: tuple[CapturedPart, ...]  # In order


def work_folder(out: Path) -> Path:
    """Where a store grows until it is whole: beside its place, under its name and ``.partial``."""
    return out.with_name(f"{out.name}.partial")
