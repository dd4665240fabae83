"""Blocks of text: the unit that one worker tokenises and packs, and that becomes a shard."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from slm_ray.data.corpus import Document, with_text
from slm_ray.data.split import part_of_digest, split_text, text_digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHOLE = 1 << 64  # the end of the range of selection keys

# Longer documents are tokenised in pieces of this size, cut at blank lines where there are any: the time and memory for
# one string grow faster than its length.
_PIECE_CHARACTERS = 1 << 16
_BATCH_CHARACTERS = 1 << 18


class Piece(NamedTuple):
    """A document, or a stretch of a long one."""

    text: str
    begins: bool  # whether the document begins here
    ends: bool  # whether it ends here


def selection_key(digest: bytes) -> int:
    """What decides whether a document is in a sample: bytes 8 to 16 of its digest, so it is independent of the part."""
    return int.from_bytes(digest[8:16], "big")


def cut_blocks(
    documents: Iterable[Document], part: str, low: int, high: int, block_bytes: int, limit_bytes: int | None = None
) -> Iterator[list[Piece]]:
    """The documents of a part with selection keys from ``low`` up to ``high``, in blocks."""
    block: list[Piece] = []
    filled = total = 0
    for document in with_text(documents):
        digest = text_digest(document.text)
        if part_of_digest(digest) != part or not low <= selection_key(digest) < high:
            continue
        texts = split_text(document.text, _PIECE_CHARACTERS)
        for number, text in enumerate(texts):
            block.append(Piece(text, number == 0, number == len(texts) - 1))
            filled += len(text.encode())
            if filled >= block_bytes:
                yield block
                total += filled
                block, filled = [], 0
                if limit_bytes is not None and total >= limit_bytes:
                    return
    if block:
        yield block


@dataclass(frozen=True)
class PackedBlock:
    """The whole sequences of a block, one document behind the other; the tokens behind the last one are left out."""

    name: str  # The block's
    ids: npt.NDArray[np.int32]  # int32 ``[sequences, sequence_length]``
    starts: npt.NDArray[np.int64]  # Where documents begin, int64, rising; a block may begin in the middle of one
    num_tokens: int  # those left out included
    text_bytes: int  # UTF-8 bytes of the block's text
    num_bytes: int  # those of the sequences


NamedBlock = tuple[str, list[Piece]]


def block_packer(
    tokenizer: str, separator: int | None, sequence_length: int, begin: int | None, *, own_process: bool
) -> Callable[[NamedBlock], PackedBlock]:
    """The function of a worker: it tokenises and packs a block."""
    if own_process:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer)
    return lambda block: pack_block(*block, backend, separator, sequence_length, begin=begin)


def pack_block(
    name: str, block: Iterable[Piece], tokenizer: Tokenizer, separator: int | None, sequence_length: int,
    most_sequences: int | None = None, begin: int | None = None,
) -> PackedBlock:  # fmt: skip
    """Tokenise a block and put the separator, if there is one, behind each document.

    ``begin``, if there is one, stands before each document and at the beginning of each sequence: models that have read
    every text with it are lost without it.

    A document of no tokens leaves nothing behind. What comes after ``most_sequences``, if given, is left out.
    """
    arrays: list[npt.NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
    starts: list[int] = []
    filled = num_bytes = 0
    width = sequence_length - (begin is not None)
    expected = False  # a document has begun and has no token yet
    for batch in _batches(block):
        encodings = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        for piece, encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids
            num_bytes += len(piece.text.encode())
            expected |= piece.begins
            if ids and expected:
                starts.append(filled)
                expected = False
                ids = ids if begin is None else [begin, *ids]
            if piece.ends and separator is not None and not expected:
                ids.append(separator)
            expected &= not piece.ends
            arrays.append(np.array(ids, dtype=np.int32))
            filled += len(ids)
        if most_sequences is not None and filled >= most_sequences * width:
            break
    num_sequences = filled // width
    whole = width * (num_sequences if most_sequences is None else min(num_sequences, most_sequences))
    rows, left_out = np.split(np.concatenate(arrays), [whole])
    between = (separator, begin)
    text = tokenizer.decode([id for id in left_out.tolist() if id not in between], skip_special_tokens=False)
    kept_bytes = num_bytes - len(text.encode())
    rows = rows.reshape(-1, width)
    begins = np.array([start for start in starts if start < whole], dtype=np.int64)
    if begin is not None:
        rows = np.concatenate([np.full((len(rows), 1), begin, dtype=np.int32), rows], axis=1)
        begins = begins // width * sequence_length + 1 + begins % width
    return PackedBlock(name, rows, begins, filled, num_bytes, kept_bytes)


def _batches(block: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    filled = 0
    for piece in block:
        batch.append(piece)
        filled += len(piece.text)
        if filled >= _BATCH_CHARACTERS:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch
