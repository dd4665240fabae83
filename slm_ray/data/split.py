"""The split of a corpus by document: which are calibrated on, trained on, held out; and fair samples of a part."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slm_ray.config.digest import sha256_bytes
from slm_ray.data.corpus import Corpus

CALIBRATION, TRAIN, HELD_OUT = "calibration", "train", "held_out"
PARTS = (CALIBRATION, TRAIN, HELD_OUT)

# Upper ends, in 64-bit fractions of one: 10% calibration, 80% train, 10% held out.
_CALIBRATION_END = (1 << 64) // 10
_TRAIN_END = (1 << 64) // 10 * 9

# How much more of a remote stream's part is read than is kept, so that neighbours in the stream are spread out.
_STREAM_WINDOW = 4
_KEY_BYTES = 16


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
    """
    return part_of_digest(text_digest(text))


@dataclass(frozen=True)
class PartSummary:
    """What a part holds, for the record of a run."""

    documents: int  # Number of documents
    bytes: int  # Their length in UTF-8
    digest: str  # SHA-256 of their sorted text digests; equal parts have equal digests whatever the order of the corpus


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


def split_text(text: str, size: int) -> list[str]:
    """Cut a text into pieces of about ``size`` characters that, joined, are the text again.

    A cut falls behind the last blank line between half the size and the size, else behind a line end, else behind a
    space, else at the size. No piece is longer than one and a half sizes.
    """
    pieces, start = [], 0
    while len(text) - start > size + size // 2:
        end = _cut(text, start + size // 2, start + size)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _cut(text: str, low: int, high: int) -> int:
    for mark in ("\n\n", "\n", " "):
        position = text.rfind(mark, low, high)
        if position >= 0:
            return position + len(mark)
    return high


@dataclass(frozen=True)
class Sample:
    """Pieces of one part in a shuffled order, and whether they are all the part has."""

    pieces: list[str]
    is_whole_part: bool


class _SmallestKeys:
    """Keeps the pieces with the smallest keys that together have ``target`` characters, and lets go of the others."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.dropped = False
        self._heap: list[tuple[int, str]] = []  # keys are negated: the largest comes first
        self._keys: set[int] = set()
        self._characters = 0

    def offer(self, key: int, piece: str) -> None:
        if key in self._keys:  # a copy of a document already here
            return
        heapq.heappush(self._heap, (-key, piece))
        self._keys.add(key)
        self._characters += len(piece)
        while self._characters - len(self._heap[0][1]) >= self.target:
            negative_key, largest = heapq.heappop(self._heap)
            self._keys.remove(-negative_key)
            self._characters -= len(largest)
            self.dropped = True

    def in_order(self) -> list[str]:
        return [piece for _, piece in sorted(self._heap, reverse=True)]


def sample_part(corpus: Corpus, part: str, piece_size: int, target: int) -> Sample:
    """Draw a fair sample of a part: pieces of its documents, in an order that depends on their content alone.

    The documents are cut into pieces, and the pieces are taken by the SHA-256 of (document digest, piece number). So
    every stretch of text is as likely to come first as any other, a larger sample begins with the smaller one, a
    repeated document counts once, and memory is held for the sample only. Of a remote stream, only the beginning is
    read.
    """
    smallest = _SmallestKeys(target)
    read = 0
    for document in corpus:
        digest = text_digest(document.text)
        if part_of_digest(digest) != part:
            continue
        for number, piece in enumerate(split_text(document.text, piece_size)):
            key = hashlib.sha256(digest + number.to_bytes(8, "big")).digest()[:_KEY_BYTES]
            smallest.offer(int.from_bytes(key, "big"), piece)
        read += len(document.text)
        if not corpus.is_finite and read >= _STREAM_WINDOW * target:
            return Sample(smallest.in_order(), is_whole_part=False)
    return Sample(smallest.in_order(), is_whole_part=not smallest.dropped)
