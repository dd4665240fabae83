"""The held-out text as each model's own tokens: one folder of shards per tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slm_ray.core.digest import digest_json
from slm_ray.core.files import cache_folder
from slm_ray.core.progress import Console
from slm_ray.data import (
    HELD_OUT,
    Corpus,
    PackedTokens,
    TokenShards,
    prepare_tokens,
    tokenizer_digest,
    write_shards,
)

_ROUNDS = 3


def _packed(corpus: Corpus, tokenizer: Any, num_tokens: int, sequence_length: int, console: Console) -> PackedTokens:
    return prepare_tokens(
        corpus, tokenizer, HELD_OUT, num_tokens=num_tokens, sequence_length=sequence_length,
        cache=cache_folder() / "tokens", console=console, flag="--eval-tokens",
    )  # fmt: skip


def _as_much_text(
    corpus: Corpus, tokenizer: Any, num_bytes: int, first_guess: int, sequence_length: int, console: Console
) -> PackedTokens:
    """The same beginning of the held-out text in another tokenizer's tokens, equal to within a sequence."""
    found = _packed(corpus, tokenizer, first_guess, sequence_length, console)
    for _ in range(_ROUNDS):
        sequences = max(1, round(found.num_sequences * num_bytes / max(found.num_bytes, 1)))
        if sequences == found.num_sequences:
            break
        found = _packed(corpus, tokenizer, sequences * sequence_length, sequence_length, console)
    return found


def held_out_shards(
    corpus: Corpus,
    tokenizer: Any,
    folder: Path,
    *,
    eval_tokens: int,
    sequence_length: int,
    num_bytes: int | None,
    console: Console,
) -> TokenShards:
    """The held-out text in a tokenizer's tokens, kept in a folder and found there again.

    Args:
        corpus: Where the text comes from.
        tokenizer: A fast tokenizer.
        folder: Where the folders of shards go.
        eval_tokens: Tokens wanted where ``num_bytes`` is None.
        sequence_length: Tokens per sequence.
        num_bytes: As much text as this, instead; the first model's share.
        console: Where to print.

    Raises:
        UserError: There is too little text, or the tokenizer is not a fast one.
    """
    digest = tokenizer_digest(tokenizer)
    key = {"corpus": corpus.identity, "tokenizer": digest, "tokens": eval_tokens, "length": sequence_length}
    place = folder / f"held_out-{digest_json(key | {'bytes': num_bytes})}"
    if not place.is_dir():
        if num_bytes is None:
            packed = _packed(corpus, tokenizer, eval_tokens, sequence_length, console)
        else:
            packed = _as_much_text(corpus, tokenizer, num_bytes, eval_tokens, sequence_length, console)
        write_shards(
            place, np.asarray(packed.ids), np.asarray(packed.document_starts), vocab_size=len(tokenizer),
            num_bytes=packed.num_bytes, separator=packed.separator, part=packed.part, corpus=packed.corpus,
            corpus_digest=packed.corpus_digest, tokenizer_digest=packed.tokenizer_digest,
        )  # fmt: skip
    return TokenShards.open(place)
