"""Tiny teachers with a tokenizer, token shards of random documents, and stores made without Ray."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.distill.capture import capture, make_request
from slm_ray.distill.config import CaptureConfig
from slm_ray.distill.store import LogitStore
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.records.logits import CaptureRequest
from slm_ray.runtime.progress import Console
from tests.models.tiny import tiny_model
from tests.search.tiny_run import make_tokenizer, sentences

VOCABULARY = 320


def make_teacher(folder: Path, name: str = "llama", seed: int = 0, rows: int = VOCABULARY) -> Teacher:
    """A tiny model of one of the families, with its tokenizer, converted into a cache."""
    tokenizer = make_tokenizer(sentences(50))
    tiny_model(name, seed=seed, vocab_size=rows).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return load_teacher(str(folder / name), folder / "cache")


def make_shards(
    folder: Path, teacher: Teacher, sequences: int, length: int, seed: int = 0, ids: int = VOCABULARY
) -> TokenShards:
    """Random tokens in documents of 2 to 30 tokens."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, ids, (sequences, length), dtype=np.int32)
    starts = np.append(0, rng.integers(2, 30, sequences * length).cumsum())
    write_shards(
        folder, rows, starts[starts < rows.size], vocab_size=VOCABULARY,
        tokenizer_digest=tokenizer_digest(teacher.tokenizer()), shard_sequences=100,
    )  # fmt: skip
    return TokenShards.open(folder)


def request_of(
    teacher: Teacher, shards: TokenShards, *, documents: str = "separate", num_sequences: int | None = None,
    **options: object,
) -> CaptureRequest:  # fmt: skip
    """What a capture with these options keeps, in fp32."""
    config = CaptureConfig(**options)  # type: ignore[arg-type]
    return make_request(
        config, teacher, shards, documents=documents, precision="fp32", num_sequences=num_sequences
    )


def make_store(
    folder: Path, teacher: Teacher, shards: TokenShards, part_sequences: int = 4, **options: object
) -> LogitStore:
    """A store captured in this process."""
    request = request_of(teacher, shards, **options)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slm_ray.distill.capture.part_sequences", lambda *_: part_sequences)
        return capture(teacher, shards, request, folder, console=Console(stream=io.StringIO()), workers=0, threads=1)
