"""Tokens of one part of a corpus, packed into sequences without padding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm_ray.config.digest import sha256_bytes
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.data.documents import Corpus
from slm_ray.data.packed import PackedTokens, digest_array
from slm_ray.data.pieces import sample_part
from slm_ray.data.split import PARTS
from slm_ray.data.token_cache import load_or_build
from slm_ray.runtime.progress import Console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHARACTERS_PER_TOKEN = 4  # of English and of code, with the tokenizers of today
_SPARE = 2  # first guess: twice the characters that should be needed
_BATCH_PIECES = 32


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """The SHA-256 of what a fast tokenizer does, padding and truncation (which calls switch on and off) left out.

    Raises:
        UserError: The tokenizer is not a fast one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} is not a fast one: use a model folder that has a tokenizer.json"
        )
    if backend.padding is not None or backend.truncation is not None:
        backend = type(backend).from_str(backend.to_str())  # a copy: the caller's keeps its settings
        backend.no_padding()
        backend.no_truncation()
    return sha256_bytes(backend.to_str().encode())


class _Packer:
    """Fills one flat array with the tokens of piece after piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.separator: int | None = tokenizer.eos_token_id
        self.flat = np.empty(num_tokens, dtype=np.int32)
        self.starts: list[int] = []
        self.filled = 0
        self.num_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.filled == len(self.flat)

    def add(self, pieces: list[str]) -> None:
        """Tokenise pieces and append them until the array is full; the last one may be cut."""
        for piece, ids in zip(pieces, self._tokenise(pieces)["input_ids"], strict=True):
            if self.is_full:
                return
            if not ids:
                continue
            taken = min(len(ids), len(self.flat) - self.filled)
            self.starts.append(self.filled)
            self.flat[self.filled : self.filled + taken] = ids[:taken]
            self.filled += taken
            self.num_bytes += len((piece if taken == len(ids) else self._covered(piece, taken)).encode())
            if self.separator is not None and not self.is_full:
                self.flat[self.filled] = self.separator
                self.filled += 1

    def _tokenise(self, pieces: list[str], **options: Any) -> Any:
        return self.tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)

    def _covered(self, piece: str, num_tokens: int) -> str:
        """The beginning of a piece that its first tokens stand for."""
        offsets = self._tokenise([piece], return_offsets_mapping=True)["offset_mapping"][0]
        return piece[: offsets[num_tokens - 1][1]]


def _pack(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, part: str, num_tokens: int, sequence_length: int, flag: str
) -> _Packer:
    """Tokenise as little of a part as gives the tokens; draw again, more generously, if the first guess falls short."""
    piece_size = _CHARACTERS_PER_TOKEN * sequence_length  # about one sequence
    target = _SPARE * _CHARACTERS_PER_TOKEN * num_tokens
    while True:
        sample = sample_part(corpus, part, piece_size, target)
        packer = _Packer(tokenizer, num_tokens)
        for start in range(0, len(sample.pieces), _BATCH_PIECES):
            packer.add(sample.pieces[start : start + _BATCH_PIECES])
            if packer.is_full:
                return packer
        if sample.is_whole_part:
            raise _too_few(corpus, part, packer.filled, num_tokens, sequence_length, flag)
        target *= 2


def _too_few(corpus: Corpus, part: str, found: int, needed: int, sequence_length: int, flag: str) -> UserError:
    return UserError(
        f"the {part} part of the corpus '{corpus.name}' has {found:,} tokens, but {needed:,} are needed "
        f"({needed // sequence_length} sequences of {sequence_length}): give more text, or ask for less with {flag} or "
        "a smaller --sequence-length"
    )


def prepare_tokens(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    part: str,
    *,
    num_tokens: int,
    sequence_length: int,
    cache: Path | None = None,
    console: Console | None = None,
    flag: str | None = None,
) -> PackedTokens:
    """Tokenise a fair sample of a part of a corpus and pack it into sequences.

    Args:
        corpus: Where the text comes from.
        tokenizer: A fast tokenizer; its EOS, if it has one, ends each document.
        part: ``calibration``, ``train`` or ``held_out``.
        num_tokens: Tokens wanted, rounded up to whole sequences.
        sequence_length: Tokens per sequence, at least 2.
        cache: A folder to keep the tokens in and find them again, memory-mapped; None keeps them in memory only.
        console: Where to say that a damaged cache is being made again.
        flag: The flag to name when the part has too little; that of the part by default.

    Returns:
        ``ceil(num_tokens / sequence_length)`` sequences; the same for the same corpus content, tokenizer and sizes.

    Raises:
        UserError: The part is too small, a size or the part's name is wrong, or a file cannot be read or written.
    """
    if part not in PARTS:
        raise unknown_name("part of a corpus", part, PARTS)
    if num_tokens < 1:
        raise UserError(f"the number of {part} tokens must be at least 1, got {num_tokens}")
    if sequence_length < 2:
        raise UserError(f"--sequence-length must be at least 2, got {sequence_length}")
    digest = tokenizer_digest(tokenizer)

    def build() -> PackedTokens:
        total = -(-num_tokens // sequence_length) * sequence_length
        packer = _pack(corpus, tokenizer, part, total, sequence_length, flag or f"--{part.replace('_', '-')}-tokens")
        ids = packer.flat.reshape(-1, sequence_length)
        starts = np.asarray(packer.starts, dtype=np.int64)
        ids.flags.writeable = starts.flags.writeable = False
        return PackedTokens(
            ids, starts, part, packer.num_bytes, packer.separator, corpus.name, corpus.digest, digest, digest_array(ids)
        )

    if cache is None:
        return build()
    wanted = {
        "corpus": corpus.identity,
        "tokenizer": digest,
        "separator": tokenizer.eos_token_id,
        "part": part,
        "num_sequences": -(-num_tokens // sequence_length),
        "sequence_length": sequence_length,
    }
    return load_or_build(cache, wanted, build, console or Console())
