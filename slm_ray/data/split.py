"""The split of a corpus by document: which are calibrated on, trained on, held out; and fair samples of a part."""

from __future__ import annotations

import hashlib
import heapq
import math
from typing import Any, NamedTuple

from slm_ray.config.digest import sha256_bytes
from slm_ray.config.errors import UserError
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


def summarise_parts(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """Documents, bytes (UTF-8) and digest of each part, in one pass; nothing of a hub stream.

    The digest is of the sorted digests of the texts: equal parts have equal ones whatever the order of the corpus.
    """
    if not corpus.is_finite:
        return {}
    digests: dict[str, list[bytes]] = {part: [] for part in PARTS}
    sizes = dict.fromkeys(PARTS, 0)
    for document in corpus:
        digest = text_digest(document.text)
        part = part_of_digest(digest)
        digests[part].append(digest)
        sizes[part] += len(document.text.encode())
    return {
        part: {"documents": len(digests[part]), "bytes": sizes[part], "digest": sha256_bytes(*sorted(digests[part]))}
        for part in PARTS
    }


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


class Sample(NamedTuple):
    """Pieces of one part in a shuffled order, and whether they are all the part has."""

    pieces: list[str]
    is_whole_part: bool


def sample_part(corpus: Corpus, part: str, piece_size: int, target: int) -> Sample:
    """Draw a fair sample of a part: pieces of its documents, in an order that depends on their content alone.

    The documents are cut into pieces, and the pieces are taken by the SHA-256 of (document digest, piece number). So
    every stretch of text is as likely to come first as any other, a larger sample begins with the smaller one, a
    repeated document counts once, and memory is held for the sample only. Of a remote stream, only the beginning is
    read. Of a blend, each corpus gives its share of the characters, again from its first piece where it has fewer.
    """
    if corpus.shares:
        return _sample_blend(corpus, part, piece_size, target)
    kept: list[tuple[int, str]] = []  # the pieces with the smallest keys, negated: the largest comes first
    keys, characters, read, is_whole = set[int](), 0, 0, True
    for document in corpus:
        digest = text_digest(document.text)
        if part_of_digest(digest) != part:
            continue
        for number, piece in enumerate(split_text(document.text, piece_size)):
            key = int.from_bytes(hashlib.sha256(digest + number.to_bytes(8, "big")).digest()[:_KEY_BYTES], "big")
            if key in keys:  # a copy of a document already here
                continue
            heapq.heappush(kept, (-key, piece))
            keys.add(key)
            characters += len(piece)
            while characters - len(kept[0][1]) >= target:
                largest, dropped = heapq.heappop(kept)
                keys.remove(-largest)
                characters -= len(dropped)
                is_whole = False
        read += len(document.text)
        if not corpus.is_finite and read >= _STREAM_WINDOW * target:
            is_whole = False
            break
    return Sample([piece for _, piece in sorted(kept, reverse=True)], is_whole)


def _sample_blend(corpus: Corpus, part: str, piece_size: int, target: int) -> Sample:
    samples = [sample_part(one, part, piece_size, math.ceil(share * target)) for share, one in corpus.shares]
    sizes = [sum(map(len, sample.pieces)) for sample in samples]
    if not all(sizes):
        empty = corpus.shares[sizes.index(0)][1].name
        raise UserError(f"the corpus '{empty}' has no document in its {part} part: give more text")
    # No more than repeats all corpora but one
    total = min(target, max(size / share for size, (share, _) in zip(sizes, corpus.shares, strict=True)))
    placed: list[tuple[float, str]] = []
    for sample, size, (share, _) in zip(samples, sizes, corpus.shares, strict=True):
        count = max(1, round(len(sample.pieces) * share * total / size))
        placed += [((at + 0.5) / count, sample.pieces[at % len(sample.pieces)]) for at in range(count)]
    pieces = [piece for _, piece in sorted(placed, key=lambda one: one[0])]
    return Sample(pieces, all(sample.is_whole_part for sample in samples))
