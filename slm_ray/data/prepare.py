"""Making the shards that are trained on: a corpus tokenised and packed in parallel.

This process reads the corpus and cuts it into blocks, workers tokenise and pack them, and this process writes each as a
shard, in a work folder that takes its final name when it is complete. What is finished there is not made again.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.data.blocks import WHOLE, NamedBlock, PackedBlock, block_packer, cut_blocks
from slm_ray.data.corpus import Corpus
from slm_ray.data.sample import blended, check_request
from slm_ray.data.shards import IDS, REMEDY, STARTS, TokenShards, write_manifest, write_shard
from slm_ray.data.split import share_of_part
from slm_ray.data.tokenizers import begin_facts, load_tokenizer, plain_backend, tokenizer_digest, vocab_size_of
from slm_ray.records.base import parse_record
from slm_ray.records.data import PreparedBlock, ShardManifest, read_sealed
from slm_ray.records.files import explain_os_error, fsync_folder, read_json, write_json
from slm_ray.runtime.fan_out import FanOut
from slm_ray.runtime.locks import held
from slm_ray.runtime.progress import Console, Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FORMAT = 4  # raise it when the choice of documents, their packing or the files change
_LOCK_FILE = ".lock"
_BYTES_PER_TOKEN = 4  # of English and of code, with the tokenizers of today; for estimates only
_SPARE = 1.25  # how much more than seems needed is chosen
_ENOUGH_OF_A_PART = 0.5  # from here on it is simpler, and hardly slower, to take the whole part
_BLOCKS, _LEAST_BLOCK_BYTES, _LARGEST_BLOCK_BYTES = 32, 1 << 18, 1 << 23


def prepare_shards(
    corpus: Corpus, tokenizer: Any, part: str, *, sequence_length: int, num_tokens: int | None, cache: Path,
    console: Console, workers: int,
) -> TokenShards:  # fmt: skip
    """Tokenise a part of a corpus and pack its documents, one behind the other, into shards of sequences.

    The shards are found again in the cache by what they are made from. A preparation that was killed goes on behind its
    last finished shard. Memory is held for one block of text per worker, whatever the size of the corpus, and the
    result is the same for any number of workers. Ray must have been started by the caller if there are workers.

    ``num_tokens``: At least so many tokens, where the part has them: of a corpus at hand a fair sample of its
    documents, of a remote stream its beginning. None takes the whole part. Of a blend exactly so many, in whole
    sequences; a corpus with less than its share is gone through again.
    """
    check_request(part, num_tokens, sequence_length)
    if isinstance(tokenizer, Path):
        tokenizer = load_tokenizer(tokenizer, local=True)
    if corpus.shares:
        if num_tokens is None:
            raise UserError(f"the blend '{corpus.name}' has no end: say how many tokens of it are taken")

        def prepare(one: Corpus, tokens: int) -> TokenShards:
            return prepare_shards(
                one, tokenizer, part, sequence_length=sequence_length, num_tokens=tokens, cache=cache, console=console,
                workers=workers,
            )  # fmt: skip

        return blended(corpus, prepare, num_tokens, sequence_length, cache, console)
    plan = make_plan(corpus, part, num_tokens, sequence_length)
    made_from: dict[str, JsonValue] = {
        "corpus": corpus.identity, "tokenizer": tokenizer_digest(tokenizer), "separator": tokenizer.eos_token_id,
        "part": part, "num_tokens": plan.num_tokens, "sequence_length": sequence_length, **begin_facts(tokenizer),
    }  # fmt: skip
    final = cache / f"{part}-shards-{digest_json({'format': _FORMAT, **made_from})}"
    if (found := _find(final, console)) is not None:
        return found
    work = cache / f".{final.name}.work"
    waits = f"another process prepares the same shards in {work}: waiting for it"
    with held(work / _LOCK_FILE, lambda: console.line(waits)):
        if final.exists():  # another process was quicker
            _discard(work)
        elif (work / ShardManifest.FILE).exists():  # killed at the very end
            take_name(work, final)
        else:
            _Preparation(corpus, plan, plain_backend(tokenizer), made_from, work, console, workers).run()
            take_name(work, final)
    return TokenShards.open(final)


def _find(final: Path, console: Console) -> TokenShards | None:
    """Shards that are there already; damaged ones are reported and removed."""
    if not final.exists():
        return None
    try:
        return TokenShards.open(final)
    except UserError as error:
        console.line(f"{error}: making them again")
        _discard(final)
        return None


@dataclass(frozen=True)
class Plan:
    """How much of a corpus is taken, and in what portions; the number of workers has no part in it."""

    num_tokens: int | None  # Tokens wanted, as whole sequences; None for the whole part
    high: int  # The end of the selection keys of the first round
    expected_tokens: float  # About how many tokens that gives; 0 when it cannot be known
    block_bytes: int  # Size of a block of text


def make_plan(corpus: Corpus, part: str, num_tokens: int | None, sequence_length: int) -> Plan:
    """Decide how much of a part is taken; sizes on the disk stand for tokens, so this costs next to nothing.

    ``num_tokens``: Tokens wanted; None for the whole part.
    """
    if num_tokens is not None:
        num_tokens = -(-num_tokens // sequence_length) * sequence_length
    if not corpus.is_finite:
        expected, high = float(num_tokens or 0), WHOLE
    else:
        whole_part = corpus.num_bytes * share_of_part(part) / _BYTES_PER_TOKEN
        share = 1.0 if num_tokens is None else _SPARE * num_tokens / max(whole_part, 1)
        if share >= _ENOUGH_OF_A_PART:
            num_tokens, share = None, 1.0
        expected, high = share * whole_part, int(share * WHOLE)
    block_bytes = int(expected) * _BYTES_PER_TOKEN // _BLOCKS or _LARGEST_BLOCK_BYTES
    return Plan(num_tokens, high, expected, min(max(block_bytes, _LEAST_BLOCK_BYTES), _LARGEST_BLOCK_BYTES))


def _next_high(high: int, found: int, wanted: int) -> int:
    """A wider choice of documents when the first one gave too few tokens."""
    share = high / WHOLE * min(max(_SPARE * wanted / max(found, 1), _SPARE), 16.0)
    return WHOLE if share >= _ENOUGH_OF_A_PART else int(share * WHOLE)


class _Preparation:
    """Makes the shards of one folder, in rounds over a corpus or along a stream."""

    def __init__(
        self, corpus: Corpus, plan: Plan, backend: Tokenizer, made_from: Mapping[str, JsonValue], work: Path,
        console: Console, workers: int,
    ) -> None:  # fmt: skip
        self.corpus, self.plan, self.backend, self.work, self.workers = corpus, plan, backend, work, workers
        self.made_from = made_from
        self.part: Any = made_from["part"]
        self.length: Any = made_from["sequence_length"]
        self.separator: Any = made_from["separator"]
        self.begin: Any = made_from.get("begin")
        self.progress = Progress(console, f"preparing {self.part} tokens", plan.expected_tokens, "tokens")

    def run(self) -> None:
        """Make the blocks that are not there yet, then the manifest."""
        make = functools.partial(
            block_packer, self.backend.to_str(), self.separator, self.length, self.begin,
            own_process=bool(self.workers),
        )
        fan_out = FanOut[NamedBlock, PackedBlock](make, self.workers, name="tokenizing worker")
        with fan_out:
            blocks = self._rounds(fan_out) if self.corpus.is_finite else self._stream(fan_out)
        if not (found := self._tokens_of(blocks)):
            _discard(self.work)
            there = sum(block.num_tokens for block in blocks)
            raise UserError(
                f"the {self.part} part of the corpus '{self.corpus.name}' has {there:,} tokens, less than one sequence "
                f"of {self.length:,}: give more text, or a smaller --sequence-length"
            )
        write_manifest(
            self.work, [block.shard for block in blocks if block.shard is not None], sequence_length=self.length,
            num_bytes=sum(block.num_bytes for block in blocks), separator=self.separator,
            vocab_size=vocab_size_of(self.backend), part=self.part, corpus=self.corpus.name,
            corpus_digest=self.corpus.digest, tokenizer_digest=str(self.made_from["tokenizer"]),
            made_from=self.made_from,
        )  # fmt: skip
        self.progress.finish(f"{found:,} tokens")

    def _tokens_of(self, blocks: Iterable[PreparedBlock]) -> int:
        """Tokens of the whole sequences of blocks."""
        return self.length * sum(block.shard.num_sequences for block in blocks if block.shard is not None)

    def _rounds(self, fan_out: FanOut[NamedBlock, PackedBlock]) -> list[PreparedBlock]:
        """Blocks of a corpus at hand: a choice of documents, and wider ones until there are enough tokens."""
        wanted, blocks, low, high = self.plan.num_tokens, list[PreparedBlock](), 0, self.plan.high
        for number in itertools.count():
            done = self.work / f"round-{number}.json"
            if not done.exists():
                self._make_blocks(fan_out, number, low, high)
                write_json(done, {"low": low, "high": high})
            blocks += self._finished(number)
            found = self._tokens_of(blocks)
            if high == WHOLE or wanted is None or found >= wanted:
                break
            low, high = high, _next_high(high, found, wanted)
        return blocks

    def _stream(self, fan_out: FanOut[NamedBlock, PackedBlock]) -> list[PreparedBlock]:
        """The first blocks of a stream that have enough tokens together; it is read no further than seems needed."""
        wanted = self.plan.num_tokens
        limit = None if wanted is None else int(_SPARE * _BYTES_PER_TOKEN * wanted)
        while True:
            self._make_blocks(fan_out, 0, 0, WHOLE, limit)
            blocks = self._finished(0)
            ends = list(itertools.accumulate(self._tokens_of([block]) for block in blocks))
            if wanted is None or limit is None:
                return blocks
            enough = next((number for number, end in enumerate(ends, start=1) if end >= wanted), None)
            if enough is not None or sum(block.text_bytes for block in blocks) < limit:
                return blocks[:enough]
            limit *= 2

    def _finished(self, round: int) -> list[PreparedBlock]:
        """A round's finished blocks, in the order of the corpus."""
        paths = sorted(self.work.glob(f"shard-{round}-*.json"))
        return [parse_record(PreparedBlock, read_json(path), str(path)) for path in paths]

    def _make_blocks(
        self, fan_out: FanOut[NamedBlock, PackedBlock], round: int, low: int, high: int, limit: int | None = None
    ) -> None:
        """Make one round's blocks that are not there."""
        for _, packed in fan_out.run(self._missing(round, low, high, limit)):
            self._write(packed)
            self._show(packed.num_tokens)

    def _missing(self, round: int, low: int, high: int, limit: int | None) -> Iterator[NamedBlock]:
        blocks = cut_blocks(self.corpus.read(), self.part, low, high, self.plan.block_bytes, limit)
        for number, block in enumerate(blocks):
            name = f"shard-{round}-{number:07d}"
            if (path := self.work / f"{name}.json").exists():
                self._show(parse_record(PreparedBlock, read_json(path), str(path)).num_tokens)
            else:
                yield name, block

    def _show(self, num_tokens: int) -> None:
        done = self.progress.done + num_tokens
        if self.progress.total:
            self.progress.total = max(self.progress.total, done)
        self.progress.update(done)

    def _write(self, packed: PackedBlock) -> None:
        """Write a block's sequences as a shard, and then its record."""
        shard = write_shard(self.work, packed.name, packed.ids, packed.starts) if len(packed.ids) else None
        block = PreparedBlock(
            shard=shard, num_tokens=packed.num_tokens, text_bytes=packed.text_bytes, num_bytes=packed.num_bytes
        )
        write_json(self.work / f"{packed.name}.json", block.to_json())


def take_name(work: Path, final: Path) -> None:
    """Remove what only the work needed, and rename the folder."""
    manifest = read_sealed(work, ShardManifest, REMEDY)
    kept = {f"{shard.name}{kind}" for shard in manifest.shards for kind in (IDS, STARTS)}
    try:
        for path in work.iterdir():
            if path.name not in kept | {ShardManifest.FILE, _LOCK_FILE}:
                path.unlink()
        work.rename(final)
        fsync_folder(final.parent)
        (final / _LOCK_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error(error, f"writing {final}") from error


def _discard(folder: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise explain_os_error(error, f"deleting {folder}") from error
