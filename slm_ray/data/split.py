"""Which documents are calibrated on, which are trained on, and which are kept for the final measurement."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slm_ray.config.digest import sha256_bytes
from slm_ray.data.documents import Corpus

CALIBRATION, TRAIN, HELD_OUT = "calibration", "train", "held_out"
PARTS = (CALIBRATION, TRAIN, HELD_OUT)

# Upper ends, in 64-bit fractions of one: 10% calibration, 80% train, 10% held out.
_CALIBRATION_END = (1 << 64) // 10
_TRAIN_END = (1 << 64) // 10 * 9


def text_digest(text: str) -> bytes:
    """The SHA-256 of a text in UTF-8 (32 bytes)."""
    return hashlib.sha256(text.encode()).digest()


def part_of_digest(digest: bytes) -> str:
    """The part that the text with this digest belongs to; see :func:`part_of`."""
    position = int.from_bytes(digest[:8], "big")
    if position < _CALIBRATION_END:
        return CALIBRATION
    return TRAIN if position < _TRAIN_END else HELD_OUT


def share_of_part(part: str) -> float:
    """The share of documents that is expected to be in a part."""
    return 0.8 if part == TRAIN else 0.1


def part_of(text: str) -> str:
    """The part that a document belongs to, by its text alone.

    The first 8 bytes of the text's SHA-256 are read as a number from 0 to 1: below 0.1 is ``calibration``, below 0.9 is
    ``train``, the rest is ``held_out``. So copies of a text are never on two sides, and adding documents moves none.

    Args:
        text: The whole text of the document.
    """
    return part_of_digest(text_digest(text))


@dataclass(frozen=True)
class PartSummary:
    """What a part holds, for the record of a run.

    Attributes:
        documents: Number of documents.
        bytes: Their length in UTF-8.
        digest: SHA-256 of their sorted text digests; equal parts have equal digests whatever the order of the corpus.
    """

    documents: int
    bytes: int
    digest: str


def summarise_parts(corpus: Corpus) -> dict[str, PartSummary]:
    """Documents, bytes and digest of each part, in one pass; empty for a corpus that is not at hand (a hub stream)."""
    if not corpus.is_finite:
        return {}
    digests: dict[str, list[bytes]] = {part: [] for part in PARTS}
    sizes = dict.fromkeys(PARTS, 0)
    for document in corpus:
        digest = text_digest(document.text)
        part = part_of_digest(digest)
        digests[part].append(digest)
        sizes[part] += len(document.text.encode())
    return {part: PartSummary(len(digests[part]), sizes[part], sha256_bytes(*sorted(digests[part]))) for part in PARTS}


def describe_parts(parts: Mapping[str, PartSummary]) -> dict[str, dict[str, Any]]:
    """The summaries as plain JSON-like values."""
    return {part: asdict(summary) for part, summary in parts.items()}
