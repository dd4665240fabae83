"""A fair sample of a part of a corpus as token shards: small, shuffled, made in this process and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.data.blend import split_count, write_blend
from slm_ray.data.blocks import PackedBlock, Piece, pack_block
from slm_ray.data.corpus import Corpus
from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.data.split import PARTS, sample_part
from slm_ray.data.tokenizers import begin_facts, begin_of, plain_backend, tokenizer_digest, vocab_size_of
from slm_ray.records.files import cache_folder
from slm_ray.runtime.progress import Console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = 2  # raise it when the choice or the order of documents changes
_CHARACTERS_PER_TOKEN = 4  # of English and of code, with the tokenizers of today
_SPARE = 2  # first guess: twice the characters that should be needed


def prepare_tokens(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, part: str, *, num_tokens: int, sequence_length: int,
    cache: Path | None = None, console: Console | None = None, flag: str | None = None,
) -> TokenShards:  # fmt: skip
    """Tokenise a fair sample of a part of a corpus and pack it into sequences.

    ``cache``: The folder of all cached tokens; ``tokens`` in slm_ray's cache by default. ``flag``: The flag to name
    when the part has too little; that of the part by default.
    """
    check_request(part, num_tokens, sequence_length)
    if corpus.shares:

        def prepare(one: Corpus, tokens: int) -> TokenShards:
            return prepare_tokens(
                one, tokenizer, part, num_tokens=tokens, sequence_length=sequence_length, cache=cache, console=console,
                flag=flag,
            )  # fmt: skip

        return blended(corpus, prepare, num_tokens, sequence_length, cache or cache_folder() / "tokens", console)
    digest = tokenizer_digest(tokenizer)
    num_sequences = -(-num_tokens // sequence_length)
    made_from: dict[str, JsonValue] = {
        "corpus": corpus.identity, "tokenizer": digest, "separator": tokenizer.eos_token_id, "part": part,
        "num_sequences": num_sequences, "sequence_length": sequence_length, **begin_facts(tokenizer),
    }  # fmt: skip

    def write(folder: Path) -> None:
        needed = flag or f"--{part.replace('_', '-')}-tokens"
        packed = _pack(corpus, tokenizer, part, num_sequences, sequence_length, needed)
        write_shards(
            folder, packed.ids, packed.starts, vocab_size=vocab_size_of(plain_backend(tokenizer)),
            num_bytes=packed.num_bytes, separator=tokenizer.eos_token_id, part=part, corpus=corpus.name,
            corpus_digest=corpus.digest, tokenizer_digest=digest, made_from=made_from,
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


def blended(
    corpus: Corpus, prepare: Callable[[Corpus, int], TokenShards], num_tokens: int, sequence_length: int, cache: Path,
    console: Console | None,
) -> TokenShards:  # fmt: skip
    """The tokens of a blend, each corpus's share made by ``prepare`` from it and a number of tokens; kept in the cache.

    Shares are whole sequences: of few, a small share may have none.
    """
    counts = split_count([share for share, _ in corpus.shares], -(-num_tokens // sequence_length))
    parts = [
        (prepare(one, count * sequence_length), count)
        for (_, one), count in zip(corpus.shares, counts, strict=True) if count
    ]  # fmt: skip
    made_from: dict[str, JsonValue] = {
        "part": parts[0][0].part, "corpus": corpus.identity,
        "blend": [[shards.corpus, shards.digest, count] for shards, count in parts],
    }  # fmt: skip

    def write(folder: Path) -> None:
        write_blend(folder, parts, corpus=corpus.name, corpus_digest=corpus.digest, made_from=made_from)

    return load_or_build(cache, made_from, write, console or Console())


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


def _pack(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, part: str, num_sequences: int, sequence_length: int, flag: str
) -> PackedBlock:
    """Tokenise as little of a part as gives the tokens; draw again, more generously, if the first guess falls short."""
    piece_size = _CHARACTERS_PER_TOKEN * sequence_length  # about one sequence
    num_tokens, backend = num_sequences * sequence_length, plain_backend(tokenizer)
    target = _SPARE * _CHARACTERS_PER_TOKEN * num_tokens
    while True:
        sample = sample_part(corpus, part, piece_size, target)
        pieces = (Piece(text, begins=True, ends=True) for text in sample.pieces)
        packed = pack_block(
            part, pieces, backend, tokenizer.eos_token_id, sequence_length, num_sequences, begin_of(tokenizer)
        )
        if len(packed.ids) == num_sequences:
            return packed
        if sample.is_whole_part:
            raise UserError(
                f"the {part} part of the corpus '{corpus.name}' has {packed.num_tokens:,} tokens, but {num_tokens:,} "
                f"are needed ({num_sequences} sequences of {sequence_length}): give more text, or fewer tokens with "
                f"{flag} or a smaller --sequence-length"
            )
        target *= 2
