"""Making the blocks of shards with Ray Data, in rounds over a corpus or along a stream."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.data.blocks import WHOLE
from slm_ray.data.documents import Corpus, Slice
from slm_ray.data.shard_tasks import TOKENIZER_FILE, Job, finish_block, read_slice
from slm_ray.data.shard_work import block_records, discard
from slm_ray.data.split import share_of_part
from slm_ray.data.tokenizers import plain_backend, vocab_size_of
from slm_ray.records.files import write_bytes, write_json
from slm_ray.runtime.home import pinned_to_home
from slm_ray.runtime.progress import Console, Progress

_BYTES_PER_TOKEN = 4  # of English and of code, with the tokenizers of today; for estimates only
_SPARE = 1.25  # how much more than seems needed is chosen
_ENOUGH_OF_A_PART = 0.5  # from here on it is simpler, and hardly slower, to take the whole part
_BLOCKS, _LEAST_BLOCK_BYTES, _LARGEST_BLOCK_BYTES = 32, 1 << 18, 1 << 23
_BLOCKS_WAITING = 4  # per worker, in Ray's object store, before readers have to wait
_SLICES, _LEAST_SLICE_BYTES = 64, 1 << 20


@dataclass(frozen=True)
class Plan:
    """How much of a corpus is taken, and in what portions; the number of workers has no part in it.

    Attributes:
        slices: The corpus, in slices that are read in parallel.
        num_tokens: Tokens wanted, as whole sequences; None for the whole part.
        high: The end of the selection keys of the first round.
        expected_tokens: About how many tokens that gives; 0 when it cannot be known.
        block_bytes: Size of a block of text.
    """

    slices: Sequence[Slice]
    num_tokens: int | None
    high: int
    expected_tokens: float
    block_bytes: int


def make_plan(corpus: Corpus, part: str, num_tokens: int | None, sequence_length: int) -> Plan:
    """Decide how much of a part is taken; sizes on the disk stand for tokens, so this costs next to nothing.

    Args:
        corpus: Where the text comes from.
        part: One of :data:`slm_ray.data.split.PARTS`.
        num_tokens: Tokens wanted; None for the whole part.
        sequence_length: Tokens per sequence.

    Raises:
        UserError: A file of the corpus cannot be looked at.
    """
    if num_tokens is not None:
        num_tokens = -(-num_tokens // sequence_length) * sequence_length
    if not corpus.is_finite:
        expected, high, slices = float(num_tokens or 0), WHOLE, corpus.slices(0)
    else:
        total = sum(piece.num_bytes for piece in corpus.slices(WHOLE))
        slices = corpus.slices(max(total // _SLICES, _LEAST_SLICE_BYTES))
        whole_part = total * share_of_part(part) / _BYTES_PER_TOKEN
        share = 1.0 if num_tokens is None else _SPARE * num_tokens / max(whole_part, 1)
        if share >= _ENOUGH_OF_A_PART:
            num_tokens, share = None, 1.0
        expected, high = share * whole_part, int(share * WHOLE)
    block_bytes = int(expected) * _BYTES_PER_TOKEN // _BLOCKS or _LARGEST_BLOCK_BYTES
    return Plan(slices, num_tokens, high, expected, min(max(block_bytes, _LEAST_BLOCK_BYTES), _LARGEST_BLOCK_BYTES))


def _next_high(high: int, found: int, wanted: int) -> int:
    """A wider choice of documents when the first one gave too few tokens."""
    share = high / WHOLE * min(max(_SPARE * wanted / max(found, 1), _SPARE), 16.0)
    return WHOLE if share >= _ENOUGH_OF_A_PART else int(share * WHOLE)


class BlockMaker:
    """Makes the blocks of one folder of shards."""

    def __init__(
        self, corpus: Corpus, plan: Plan, made_from: dict[str, Any], tokenizer: Any, work: Path, console: Console,
        workers: int,
    ) -> None:  # fmt: skip
        self.corpus, self.plan, self.made_from, self.work = corpus, plan, made_from, work
        self.console, self.workers = console, workers
        self.part: str = made_from["part"]
        self.length: int = made_from["sequence_length"]
        self.backend = plain_backend(tokenizer)

    def about(self) -> dict[str, Any]:
        """What the manifest says of the shards besides their content."""
        return {
            "sequence_length": self.length,
            "separator": self.made_from["separator"],
            "vocab_size": vocab_size_of(self.backend),
            "part": self.part,
            "corpus": self.corpus.name,
            "corpus_digest": self.corpus.digest,
            "tokenizer_digest": self.made_from["tokenizer"],
            "made_from": self.made_from,
        }

    def make_blocks(self) -> list[str]:
        """Make all blocks that are not there yet.

        Returns:
            Their names, in the order of the corpus.

        Raises:
            UserError: Reading or writing fails, or they are less than one sequence.
        """
        write_bytes(self.work / TOKENIZER_FILE, self.backend.to_str().encode())
        self.progress = Progress(self.console, f"preparing {self.part} tokens", self.plan.expected_tokens, "tokens")
        names, found = self._stream() if not self.corpus.is_finite else self._rounds()
        if found < self.length:
            discard(self.work)
            raise UserError(
                f"the {self.part} part of the corpus '{self.corpus.name}' has {found:,} tokens, less than one sequence "
                f"of {self.length:,}: give more text, or a smaller --sequence-length"
            )
        self.progress.finish(f"{found:,} tokens")
        return names

    def _rounds(self) -> tuple[list[str], int]:
        """Blocks of a corpus at hand: a choice of documents, and wider ones until there are enough tokens."""
        wanted, names, found = self.plan.num_tokens, list[str](), 0
        low, high = 0, self.plan.high
        for number in itertools.count():
            done = self.work / f"round-{number}.json"
            if not done.exists():
                for _, num_tokens in self._blocks(number, low, high):
                    self._say(num_tokens)
                write_json(done, {"low": low, "high": high})
            records = block_records(self.work, number)
            names += records
            found += sum(record.num_tokens for record in records.values())
            if high == WHOLE or wanted is None or found >= wanted:
                return names, found
            low, high = high, _next_high(high, found, wanted)
        raise AssertionError("counting does not end")

    def _stream(self) -> tuple[list[str], int]:
        """The first blocks of a stream that have enough tokens together; it is read no further than seems needed."""
        wanted = self.plan.num_tokens
        limit = None if wanted is None else int(_SPARE * _BYTES_PER_TOKEN * wanted)
        while True:
            for _, num_tokens in self._blocks(0, 0, WHOLE, limit):
                self._say(num_tokens)
            records = block_records(self.work, 0)
            names, found = list[str](), 0
            for name, record in records.items():
                if wanted is not None and found >= wanted:
                    return names, found
                names.append(name)
                found += record.num_tokens
            num_bytes = sum(record.num_bytes for record in records.values())
            if wanted is None or limit is None or found >= wanted or num_bytes < limit:
                return names, found
            limit *= 2

    def _blocks(self, round: int, low: int, high: int, limit_bytes: int | None = None) -> Iterator[tuple[str, int]]:
        separator = self.made_from["separator"]
        job = Job(self.work, round, self.part, low, high, self.plan.block_bytes, self.length, separator, limit_bytes)
        return _finished_blocks(job, self.plan.slices, self.workers)

    def _say(self, num_tokens: int) -> None:
        done = self.progress.done + num_tokens
        if self.progress.total:
            self.progress.total = max(self.progress.total, done)
        self.progress.update(done)


def _finished_blocks(job: Job, slices: Sequence[Slice], workers: int) -> Iterator[tuple[str, int]]:
    """Run one round in Ray Data: (name, tokens) of each block as it is finished.

    A reading task needs little of a core, so it asks for none; then it cannot take the place of what it feeds, either.
    It runs on the command's machine, which has the text, and what it feeds on any.
    Every block of text is a Ray Data block of its own; readers wait while a few of them per worker lie ready.

    Raises:
        UserError: A task met something that a user can mend.
    """
    import ray
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1
    limits = ray.data.ExecutionResources(object_store_memory=_BLOCKS_WAITING * (workers + 1) * job.block_bytes)
    context.execution_options.resource_limits = limits
    readers, makers = (ray.data.TaskPoolStrategy(size=size) for size in (min(workers, len(slices)), workers))
    references = [ray.put(piece) for piece in slices]
    with _quiet(), ray.data.DataContext.current(context):
        rows = (
            ray.data.from_items([{"slice": number} for number in range(len(slices))], override_num_blocks=len(slices))
            .flat_map(functools.partial(read_slice, job=job, slices=references), compute=readers, **pinned_to_home(0))
            .map(functools.partial(finish_block, job=job), compute=makers, num_cpus=1)
        )
        for row in rows.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield row["name"], int(row["tokens"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data from printing plans and hints."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The maximum number of concurrent tasks", UserWarning)
            yield
    finally:
        logger.setLevel(level)
