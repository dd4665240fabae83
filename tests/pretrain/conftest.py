"""What several files of training tests share: one teacher, its shards, and a folder of random tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.split import TRAIN
from slm_ray.runtime.progress import Console
from tests.pretrain.tiny_pretrain import make_shards
from tests.search.tiny_run import LENGTH, Tiny, make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A Llama of four layers that was trained for a moment, with a corpus."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def shards(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training tokens of the corpus, prepared without Ray."""
    folder = tmp_path_factory.mktemp("prepared") / "shards"
    packed = prepare_tokens(
        load_corpus(str(tiny.corpus), "text", Console()), AutoTokenizer.from_pretrained(tiny.teacher), TRAIN,
        num_tokens=1600, sequence_length=LENGTH, cache=folder.parent / "cache", console=Console(),
    )  # fmt: skip
    packed.copy_to(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random tokens: shards and held-out ones."""
    return make_shards(tmp_path_factory.mktemp("data"))
