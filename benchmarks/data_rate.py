"""Tokens per second of preparing shards, against the bare tokenizer; and sequences per second of reading.

The bare tokenizer runs on the same documents in as many Ray tasks at once as the preparation has workers, so that both
share the machine with the same others; Ray has run one small preparation before anything is timed.

python benchmarks/data_rate.py [--data python-docs-full] [--workers 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import machine_line

from slm_ray.data import DEFAULT_CORPUS, Corpus, SequenceOrder, TokenShards, load_corpus, part_of, prepare_shards
from slm_ray.models.teachers import load_teacher
from slm_ray.runtime.progress import Console
from slm_ray.runtime.session import ray_session

SEQUENCE_LENGTH = 2048
BATCH_DOCUMENTS = 32
READ_SEQUENCES, READ_BATCH = 4096, 16


def bare_rate(tokenizer_folder: Path, texts: Sequence[str]) -> float:
    """Tokens per second of the tokenizer alone, on one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    start, tokens = time.perf_counter(), 0
    for first in range(0, len(texts), BATCH_DOCUMENTS):
        batch = tokenizer.encode_batch_fast(list(texts[first : first + BATCH_DOCUMENTS]), add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in batch)
    return tokens / (time.perf_counter() - start)


def bare_rates(tokenizer_folder: Path, texts: Sequence[str], processes: int) -> float:
    """Tokens per second of several processes at once, each with its share of the texts."""
    import ray

    shares = [ray.put(list(texts[number::processes])) for number in range(processes)]
    task = ray.remote(num_cpus=1)(bare_rate)
    return sum(ray.get([task.remote(tokenizer_folder, share) for share in shares]))


def prepare(corpus: Corpus, tokenizer_folder: Path, workers: int) -> tuple[float, TokenShards]:
    """Seconds of one preparation from nothing, and what it made."""
    cache = Path(tempfile.mkdtemp(prefix="data-rate-"))
    start = time.perf_counter()
    shards = prepare_shards(
        corpus, tokenizer_folder, "train", sequence_length=SEQUENCE_LENGTH, num_tokens=None, cache=cache,
        console=Console(), workers=workers,
    )  # fmt: skip
    return time.perf_counter() - start, shards


def read_rate(shards: TokenShards, with_positions: bool) -> float:
    """Sequences per second in the order of training."""
    order = SequenceOrder(shards.num_sequences, seed=0)
    start = time.perf_counter()
    for first in range(0, READ_SEQUENCES, READ_BATCH):
        indices = order.indices(first, READ_BATCH)
        shards.rows(indices)
        if with_positions:
            shards.positions(indices)
    return READ_SEQUENCES / (time.perf_counter() - start)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="python-docs-full")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = load_teacher("smollm2-135m").folder
    corpus = load_corpus(arguments.data)
    texts = [document.text for document in corpus if part_of(document.text) == "train"]
    counts = sorted({1, arguments.workers})
    bare: dict[int, list[float]] = {workers: [] for workers in counts}
    prepared: dict[int, list[float]] = {workers: [] for workers in counts}
    with ray_session(None, arguments.workers):
        prepare(load_corpus(DEFAULT_CORPUS), folder, arguments.workers)
        for _ in range(arguments.rounds):
            for workers in counts:
                bare[workers].append(bare_rates(folder, texts, workers))
                seconds, shards = prepare(corpus, folder, workers)
                prepared[workers].append(shards.num_tokens / seconds)

    print(f"\n{machine_line()}; {arguments.data}: {shards.num_tokens:,} tokens, medians of {arguments.rounds}\n")
    print("| workers | bare tokenizer, tokens/s | prepare_shards, tokens/s | ratio |\n|---|---|---|---|")
    for workers in counts:
        alone, made = statistics.median(bare[workers]), statistics.median(prepared[workers])
        ratio = statistics.median(b / a for a, b in zip(bare[workers], prepared[workers], strict=True))
        print(f"| {workers} | {alone:,.0f} | {made:,.0f} | {ratio:.2f} |")
    print(f"\n| reading {READ_BATCH} x {SEQUENCE_LENGTH} at a time | sequences/s | tokens/s |\n|---|---|---|")
    for label, with_positions in (("rows", False), ("rows and positions", True)):
        rate = statistics.median(read_rate(shards, with_positions) for _ in range(3))
        print(f"| {label} | {rate:,.0f} | {rate * SEQUENCE_LENGTH:,.0f} |")


if __name__ == "__main__":
    main()
