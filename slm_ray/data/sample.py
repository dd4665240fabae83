"""A fair sample of a part of a corpus as token shards: small, shuffled, made in this process and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.data.corpus import Corpus
from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.data.split import PARTS, sample_part
from slm_ray.data.tokenizers import plain_backend, tokenizer_digest, vocab_size_of
from slm_ray.records.files import cache_folder
from slm_ray.runtime.progress import Console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = 2  # raise it when the choice or the order of documents changes
_CHARACTERS_PER_TOKEN = 4  # of English and of code, with the tokenizers of today
_SPARE = 2  # first guess: twice the characters that should be needed
_BATCH_PIECES = 32


def prepare_tokens(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, part: str, *, num_tokens: int, sequence_length: int,
    cache: Path | None = None, console: Console | None = None, flag: str | None = None,
) -> TokenShards:  # fmt: skip
    """Tokenise a fair sample of a part of a corpus and pack it into sequences.

    ``cache``: The folder of all cached tokens; ``tokens`` in slm_ray's cache by default. ``flag``: The flag to name
    when the part has too little; that of the part by default.
    """
    check_request(part, num_tokens, sequence_length)
    digest = tokenizer_digest(tokenizer)
    num_sequences = -(-num_tokens // sequence_length)
    made_from: dict[str, JsonValue] = {
        "corpus": corpus.identity, "tokenizer": digest, "separator": tokenizer.eos_token_id, "part": part,
        "num_sequences": num_sequences, "sequence_length": sequence_length,
    }  # fmt: skip

    def write(folder: Path) -> None:
        total = num_sequences * sequence_length
        packer = _pack(corpus, tokenizer, part, total, sequence_length, flag or f"--{part.replace('_', '-')}-tokens")
        write_shards(
            folder, packer.flat.reshape(-1, sequence_length), np.asarray(packer.starts, dtype=np.int64),
            vocab_size=vocab_size_of(plain_backend(tokenizer)), num_bytes=packer.num_bytes, separator=packer.separator,
            part=part, corpus=corpus.name, corpus_digest=corpus.digest, tokenizer_digest=digest, made_from=made_from,
        )  # fmt: skip

    return load_or_build(cache or cache_folder() / "tokens", made_from, write, console or Console())


def check_request(part: str, num_tokens: int | None, sequence_length: int) -> None:
    """Refuse sizes and names that no part of a corpus can have."""
    if part not in PARTS:
        raise unknown_name("part of a corpus", part, PARTS)
    if num_tokens is not None and num_tokens < 1:
        raise UserError(f"the number of {part} tokens must be at least 1, got {num_tokens}")
    if sequence_length < 2:
        raise UserError(f"--sequence-length must be at least 2, got {sequence_length}")


def load_or_build(
    cache: Path, made_from: Mapping[str, JsonValue], write: Callable[[Path], None], console: Console
) -> TokenShards:
    """The tokens made from ``made_from``: from the cache if they are there and whole, else written there."""
    folder = cache / f"{made_from['part']}-{digest_json({'format': _FORMAT, **made_from})}"
    if folder.exists():
        try:
            found = TokenShards.open(folder)
            found.verify()
            return found
        except UserError as error:
            console.line(f"{error}: making them again")
    write(folder)
    return TokenShards.open(folder)


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
            raise UserError(
                f"the {part} part of the corpus '{corpus.name}' has {packer.filled:,} tokens, but {num_tokens:,} are "
                f"needed ({num_tokens // sequence_length} sequences of {sequence_length}): give more text, or fewer "
                f"tokens with {flag} or a smaller --sequence-length"
            )
        target *= 2
