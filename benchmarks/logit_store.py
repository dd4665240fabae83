"""The logit store: capture against the teacher's bare forward pass, bytes a token, and reading.

The bare pass gives the logits of all positions, as a model of transformers does; capture runs the same pass up to the
final hidden states and takes what is stored from there, encoded as it is written. Both are interleaved, and timed by
the processor's clock of this process, so that other work on the machine disturbs the ratio little.

python benchmarks/logit_store.py [--tokens 4096] [--rounds 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import machine_line

from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards, write_shards
from slm_ray.data.split import TRAIN
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.distill.capture import SignalReader, make_request
from slm_ray.distill.config import CaptureConfig
from slm_ray.distill.store import LogitStore, write_part
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.records.data import write_sealed
from slm_ray.records.files import cache_folder
from slm_ray.records.logits import StoreManifest, StoreTeacher
from slm_ray.runtime.environment import describe_environment
from slm_ray.runtime.progress import Console
from slm_ray.runtime.session import _KEEP_MEMORY

LENGTH = 512
TRAINING_RATE = 2000  # tokens per second: what training a student of half the size reaches on this machine
KINDS = {"top-k": {"k": 32}, "sampled": {"draws": 50}}


def token_shards(teacher: Teacher, folder: Path, tokens: int) -> TokenShards:
    """The first training tokens of the default corpus."""
    packed = prepare_tokens(
        load_corpus("python-docs"), teacher.tokenizer(), TRAIN, num_tokens=tokens, sequence_length=LENGTH,
        cache=cache_folder() / "tokens", console=Console(),
    )  # fmt: skip
    write_shards(
        folder, packed.ids, packed.document_starts, vocab_size=teacher.architecture().structure.vocab_size,
        tokenizer_digest=tokenizer_digest(teacher.tokenizer()),
    )  # fmt: skip
    return TokenShards.open(folder)


def interleaved(actions: list[Callable[[], object]], rounds: int) -> list[float]:
    """The median CPU seconds of each action, taken in turns."""
    seconds: list[list[float]] = [[] for _ in actions]
    for number in range(rounds + 1):
        for taken, action in zip(seconds, actions, strict=True):
            start = time.process_time()
            action()
            if number:  # the first round warms up
                taken.append(time.process_time() - start)
    return [float(np.median(taken)) for taken in seconds]


@torch.inference_mode()
def bare_forward(reader: SignalReader) -> None:
    """Logits of all positions, four sequences at a time, with the positions that capture gives."""
    for first in range(0, reader.shards.num_sequences, 4):
        indices = np.arange(first, min(first + 4, reader.shards.num_sequences))
        arrays = (reader.shards.rows(indices), reader.shards.positions(indices))
        ids, positions = (torch.from_numpy(array).long() for array in arrays)
        reader.model(ids, position_ids=positions, use_cache=False)


def write_store(reader: SignalReader, folder: Path) -> None:
    """One part with everything, and a manifest."""
    folder.mkdir(exist_ok=True)
    count = reader.shards.num_sequences
    part = write_part(folder, 0, 0, count, reader.read(0, count), 0.0)
    write_sealed(folder, StoreManifest(
        digest=part.sha256, request=reader.request, teacher=StoreTeacher(name="", licence=""),
        tokens=reader.shards.summary, num_tokens=reader.shards.num_tokens, flops=0, seconds=0.0,
        environment=describe_environment(),
        parts=(part,),
    ))  # fmt: skip


def reading_rate(store: LogitStore, batch: int = 8, batches: int = 60) -> float:
    """Predicted tokens per CPU second, in batches of sequences in random order, checksums checked."""
    rng = np.random.default_rng(0)
    start = time.process_time()
    for _ in range(batches):
        store.signal(rng.integers(0, store.num_sequences, batch))
    return batches * batch * (LENGTH - 1) / (time.process_time() - start)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("tokens", 4096), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    if os.environ.get("MALLOC_TOP_PAD_") is None:  # as in Ray's workers; glibc reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_KEEP_MEMORY})
    torch.set_num_threads(arguments.threads)
    teacher = load_teacher("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder:
        shards = token_shards(teacher, Path(folder) / "shards", arguments.tokens)
        print(
            f"{machine_line()}; {arguments.threads} threads, {shards.num_tokens:,} tokens, CPU time, medians of "
            f"{arguments.rounds} interleaved rounds\n\n"
            "| type | kind | bare, tokens/CPU s | capture, tokens/CPU s | ratio | words | bytes/token | "
            f"reading, tokens/CPU s | x {TRAINING_RATE:,} |\n|---|---|---|---|---|---|---|---|---|"
        )
        for precision in ("bf16", "fp32"):
            readers = {
                kind: SignalReader(teacher, shards, make_request(
                    CaptureConfig(kind=kind, **own), teacher, shards, documents="separate", precision=precision
                ))
                for kind, own in KINDS.items()
            }  # fmt: skip
            places = {kind: Path(folder) / f"{precision}-{kind}" for kind in readers}
            actions: list[Callable[[], object]] = [lambda: bare_forward(readers["top-k"])]  # noqa: B023
            actions += [lambda kind=kind: write_store(readers[kind], places[kind]) for kind in readers]  # noqa: B023
            bare, *captures = (shards.num_tokens / taken for taken in interleaved(actions, arguments.rounds))
            for kind, rate in zip(readers, captures, strict=True):
                store = LogitStore.open(places[kind])
                reading = reading_rate(store)
                cells = (
                    precision, kind, f"{bare:,.0f}", f"{rate:,.0f}", f"{rate / bare:.2f}",
                    f"{store.ids_per_token():.1f}", f"{store.bytes_per_token():.1f}", f"{reading:,.0f}",
                    f"{reading / TRAINING_RATE:,.0f}",
                )  # fmt: skip
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
