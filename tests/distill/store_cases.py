"""Tiny teachers with a tokenizer, token shards of random documents, and stores made without Ray."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from slm_ray.data import tokenizer_digest
from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.distill import store_format
from slm_ray.distill.capture_reader import SignalReader
from slm_ray.distill.capture_settings import CaptureSettings
from slm_ray.distill.store import LogitStore
from slm_ray.models.teachers import Teacher, load_teacher
from tests.models.tiny import tiny_model
from tests.search.tiny_run import make_tokenizer, sentences

VOCABULARY = 320


def make_teacher(folder: Path, name: str = "llama", seed: int = 0) -> Teacher:
    """A tiny model of one of the families, with its tokenizer, converted into a cache."""
    tokenizer = make_tokenizer(sentences(50))
    tiny_model(name, seed=seed, vocab_size=VOCABULARY).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return load_teacher(str(folder / name), folder / "cache")


def make_shards(folder: Path, teacher: Teacher, sequences: int, length: int, seed: int = 0) -> TokenShards:
    """Random tokens in documents of 2 to 30 tokens."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, VOCABULARY, (sequences, length), dtype=np.int32)
    starts = np.append(0, rng.integers(2, 30, sequences * length).cumsum())
    write_shards(
        folder, rows, starts[starts < rows.size], vocab_size=len(teacher.tokenizer()),
        tokenizer_digest=tokenizer_digest(teacher.tokenizer()), shard_sequences=100,
    )  # fmt: skip
    return TokenShards.open(folder)


def make_store(
    folder: Path, teacher: Teacher, shards: TokenShards, settings: CaptureSettings, part_sequences: int = 4
) -> LogitStore:
    """A store written part by part in this process."""
    reader, parts = SignalReader(teacher, shards, settings), []
    folder.mkdir()
    for number, first in enumerate(range(0, shards.num_sequences, part_sequences)):
        count = min(part_sequences, shards.num_sequences - first)
        arrays = reader.read(first, count)
        parts.append(store_format.write_part(folder, number, first, count, arrays, time.monotonic()))
    request = settings.request(teacher, shards)
    store_format.write_manifest(folder, {"format": store_format.FORMAT, "request": request, "parts": parts})
    return LogitStore.open(folder)
