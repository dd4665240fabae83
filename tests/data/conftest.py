"""A tokenizer trained on the spot, a corpus of made-up documents, and a cache folder of their own for every test."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from slm_ray.data.corpus import Corpus, Document, digest_texts

_WORDS = "the of a search student teacher layer head neuron budget token loss é 注意 → trains keeps drops".split()


def make_texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Distinct texts of a few made-up paragraphs."""
    rng = random.Random(seed)
    return [f"{number} " + " ".join(rng.choices([*_WORDS, "\n\n"], k=words)) for number in range(count)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def texts() -> list[str]:
    return make_texts(300)


@pytest.fixture
def corpus_of() -> Callable[[list[str]], Corpus]:
    def make(texts: list[str]) -> Corpus:
        documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
        return Corpus("made-up", lambda: documents, compute_digest=lambda: digest_texts(texts))

    return make


@pytest.fixture(scope="session")
def trained_tokenizer() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(make_texts(50, seed=1), trainer)
    return tokenizer.to_str()


@pytest.fixture
def tokenizer(trained_tokenizer: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained_tokenizer), eos_token="<eos>", pad_token="<pad>"
    )
