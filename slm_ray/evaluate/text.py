"""The text that is measured: packed sequences in a tokenizer's tokens, or whole documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus, split_domains
from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.data.split import HELD_OUT, sample_part
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.evaluate.config import WHOLE
from slm_ray.evaluate.text_loss import tokenise
from slm_ray.records.files import cache_folder
from slm_ray.runtime.progress import Console

_ROUNDS = 3
_CHARACTERS_PER_TOKEN = 4
_SPARE = 2  # first guess: twice the characters that should be needed
_WHOLE_DOCUMENTS = 1 << 62  # characters of a piece, so that no document is cut


@dataclass(frozen=True)
class Domain:
    """A text that models are measured on by itself.

    Attributes:
        name: What to call it.
        corpus: Where it comes from.
    """

    name: str
    corpus: Corpus


def load_domains(specs: tuple[str, ...], text_field: str, domain_field: str | None, console: Console) -> list[Domain]:
    """The domains of the ``--data`` given, each ``NAME=CORPUS`` or a corpus.

    Raises:
        UserError: A corpus cannot be read, or two domains have one name.
    """
    found: list[Domain] = []
    for spec in specs:
        name, _, rest = spec.partition("=")
        label, source = (name.strip(), rest.strip()) if rest and "/" not in name else (spec, spec)
        corpus = load_corpus(source, text_field, console, domain_field)
        if domain_field is None:
            found.append(Domain(label, corpus))
            continue
        prefix = f"{label}/" if len(specs) > 1 else ""
        found += [Domain(prefix + part, inside) for part, inside in split_domains(corpus, domain_field).items()]
    names = [domain.name for domain in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--data names the domain '{twice}' twice: give one of them another name, as NAME={twice}")
    return found


def held_out_shards(
    corpus: Corpus, tokenizer: Any, *, eval_tokens: int, sequence_length: int, num_bytes: int | None, console: Console
) -> TokenShards:
    """A sample of the held-out text in a tokenizer's tokens, packed.

    Args:
        corpus: Where the text comes from.
        tokenizer: A fast tokenizer.
        eval_tokens: Tokens wanted where ``num_bytes`` is None.
        sequence_length: Tokens per sequence.
        num_bytes: As much text as this, to within a sequence, instead; the first model's share.
        console: Where to print.

    Raises:
        UserError: There is too little text, or the tokenizer is not a fast one.
    """

    def packed(num_tokens: int) -> TokenShards:
        return prepare_tokens(
            corpus, tokenizer, HELD_OUT, num_tokens=num_tokens, sequence_length=sequence_length, console=console,
            flag="--eval-tokens",
        )  # fmt: skip

    found = packed(eval_tokens)
    for _ in range(_ROUNDS if num_bytes is not None else 0):
        sequences = max(1, round(found.num_sequences * (num_bytes or 0) / max(found.num_bytes, 1)))
        if sequences == found.num_sequences:
            break
        found = packed(sequences * sequence_length)
    return found


def whole_shards(corpus: Corpus, tokenizer: Any, *, sequence_length: int) -> TokenShards:
    """All of a corpus in its own order, packed into whole sequences; tokens at the end that fill none are left out.

    Args:
        corpus: Where the text comes from.
        tokenizer: A fast tokenizer; its EOS, if it has one, ends each document.
        sequence_length: Tokens per sequence.

    Raises:
        UserError: The text does not fill one sequence, or the corpus is a remote stream.
    """
    digest = tokenizer_digest(tokenizer)
    key = {"corpus": corpus.identity, "tokenizer": digest, "length": sequence_length, "part": WHOLE}
    place = cache_folder() / "tokens" / f"whole-{digest_json(key)}"
    if not place.is_dir():
        _write_whole(place, whole_texts(corpus), corpus, tokenizer, digest, sequence_length)
    return TokenShards.open(place)


def _write_whole(
    place: Path, texts: Sequence[str], corpus: Corpus, tokenizer: Any, digest: str, sequence_length: int
) -> None:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    flat: list[int] = []
    starts, ends = [], []
    for found in tokenise(texts, tokenizer):
        starts.append(len(flat))
        flat += found
        ends.append(len(flat))
        flat += end
    kept = len(flat) // sequence_length * sequence_length
    if not kept:
        raise UserError(
            f"the corpus '{corpus.name}' has {len(flat):,} tokens, fewer than one sequence: give a smaller "
            "--sequence-length, or --window sliding"
        )
    num_bytes = 0
    for text, start, last in zip(texts, starts, ends, strict=True):
        if start < kept:
            num_bytes += len((text if last <= kept else _beginning(text, kept - start, tokenizer)).encode())
    ids = np.array(flat[:kept], dtype=np.int32).reshape(-1, sequence_length)
    inside = np.array([start for start in starts if start < kept], dtype=np.int64)
    write_shards(
        place, ids, inside, vocab_size=len(tokenizer), num_bytes=num_bytes, separator=tokenizer.eos_token_id,
        part=WHOLE, corpus=corpus.name, corpus_digest=corpus.digest, tokenizer_digest=digest,
    )  # fmt: skip


def _beginning(text: str, num_tokens: int, tokenizer: Any) -> str:
    """The part of a text that its first tokens stand for."""
    offsets = tokenizer([text], add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[: offsets[0][num_tokens - 1][1]]


def whole_texts(corpus: Corpus) -> list[str]:
    """All documents of a corpus.

    Raises:
        UserError: It is a remote stream.
    """
    if not corpus.is_finite:
        raise UserError(f"--part whole reads all of a corpus, and {corpus.name} is a stream without end: leave it out")
    return [document.text for document in corpus]


def held_out_texts(corpus: Corpus, tokenizer: Any, eval_tokens: int) -> list[str]:
    """Whole documents of the held-out part, as many as have so many tokens.

    Args:
        corpus: Where they come from.
        tokenizer: The first model's.
        eval_tokens: Tokens wanted.

    Raises:
        UserError: There is too little text.
    """
    target = _SPARE * _CHARACTERS_PER_TOKEN * eval_tokens
    while True:
        sample = sample_part(corpus, HELD_OUT, _WHOLE_DOCUMENTS, target)
        chosen, tokens = [], 0
        for text, ids in zip(sample.pieces, tokenise(sample.pieces, tokenizer), strict=True):
            chosen.append(text)
            tokens += len(ids)
            if tokens >= eval_tokens:
                return chosen
        if sample.is_whole_part:
            raise UserError(
                f"the held_out part of the corpus '{corpus.name}' has {tokens:,} tokens, but {eval_tokens:,} are "
                "needed: give more text, a smaller --eval-tokens, or all of it with --part whole"
            )
        target *= 2
