"""Training a tokenizer: byte-level BPE on a corpus's train part, kept in the cache by what it is made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus
from slm_ray.data.split import TRAIN, sample_part
from slm_ray.data.tokenizers import load_tokenizer
from slm_ray.records.files import whole_folder
from slm_ray.runtime.progress import Console

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
SMALLEST, LARGEST = 256 + len(SPECIAL_TOKENS), 1 << 20
_FORMAT = 1  # raise it when the same corpus and size would give another tokenizer
_CHARACTERS = 100_000_000  # of the corpus that are looked at: a fair sample of a larger one
_PIECE = 4096  # characters; pieces are cut at blank lines, line ends or spaces
_BATCH = 256


def check_size(vocab_size: int) -> None:
    """Refuse a vocabulary that byte-level BPE cannot have."""
    if not SMALLEST <= vocab_size <= LARGEST:
        raise UserError(
            f"a trained tokenizer must have {SMALLEST:,} tokens (256 bytes, {len(SPECIAL_TOKENS)} special ones) to "
            f"{LARGEST:,}, got {vocab_size:,}"
        )


def text_sample(corpus: Corpus, characters: int = _CHARACTERS) -> list[str]:
    """A fair sample of the train part, in an order that depends on its content alone."""
    pieces = sample_part(corpus, TRAIN, _PIECE, characters).pieces
    if not pieces:
        raise UserError(f"the corpus '{corpus.name}' has no document in its train part: give more text")
    return pieces


def train_tokenizer(corpus: Corpus, vocab_size: int, cache: Path, console: Console) -> Any:
    """Train a tokenizer, or find it in the cache.

    Text is cut as GPT-2 does, digits one by one, and BPE merges bytes (arXiv 1508.07909). The same text and size give
    the same tokenizer.
    """
    check_size(vocab_size)
    made_from = {"format": _FORMAT, "corpus": corpus.identity, "vocab_size": vocab_size, "characters": _CHARACTERS}
    folder = cache / f"bpe-{vocab_size}-{digest_json(made_from)}"
    if not (folder / "tokenizer.json").is_file():
        console.line(f"training a tokenizer of {vocab_size:,} tokens on {corpus.name}")
        tokenizer = _train(text_sample(corpus), vocab_size, corpus.name)
        with whole_folder(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    return load_tokenizer(folder, local=True)


def _batches(pieces: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(pieces), _BATCH):
        yield pieces[start : start + _BATCH]


def _train(pieces: list[str], vocab_size: int, corpus_name: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False, min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(_batches(pieces), trainer)
    if (found := backend.get_vocab_size()) < vocab_size:
        raise UserError(
            f"the train part of '{corpus_name}' gives a tokenizer of {found:,} tokens, but {vocab_size:,} are wanted: "
            "ask for fewer, or give more text"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT, pad_token=PADDING
    )
