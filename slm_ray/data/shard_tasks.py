"""What Ray's workers do to make shards: read blocks of text, then tokenise, pack and write each as a shard."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm_ray.config.errors import UserError
from slm_ray.data.blocks import Piece, cut_blocks, pack_block
from slm_ray.data.shards import write_shard
from slm_ray.records.base import parse_record
from slm_ray.records.data import PreparedBlock
from slm_ray.records.files import read_json, write_json
from slm_ray.runtime.copies import local_copy
from slm_ray.runtime.deliveries import outbox

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Job:
    """What is the same for all tasks of a round.

    Attributes:
        folder: Where finished shards go, and where the tokenizer is.
        round: Its number; what is finished is named after it.
        part: The part of the corpus.
        low: The smallest selection key of its documents.
        high: The end of their selection keys.
        block_bytes: Size of a block of text.
        sequence_length: Tokens per sequence.
        separator: The id behind each document, if there is one.
        limit_bytes: How much text of a slice is read; None for all of it.
    """

    folder: Path
    round: int
    part: str
    low: int
    high: int
    block_bytes: int
    sequence_length: int
    separator: int | None
    limit_bytes: int | None = None


def record_path(folder: Path, name: str) -> Path:
    """The file that says that a block is finished; written behind the block's shard."""
    return folder / f"{name}.json"


def _row(name: str = "", text: bytes = b"", error: str = "") -> dict[str, Any]:
    return {"name": name, "text": text, "tokens": 0, "error": error}


def read_slice(row: dict[str, int], job: Job, slices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """First stage: the blocks of one slice, as rows of name and text; those that are finished come without text.

    What a user can mend comes as a row with the error's sentence.

    Args:
        row: The slice's number under ``slice``.
        job: What to read.
        slices: Ray references to all slices.
    """
    import ray

    number = row["slice"]
    try:
        documents = ray.get(slices[number]).documents()
        blocks = cut_blocks(documents, job.part, job.low, job.high, job.block_bytes, job.limit_bytes)
        for index, block in enumerate(blocks):
            name = f"shard-{job.round}-{number:05d}-{index:07d}"
            if (done := record_path(job.folder, name)).exists():
                yield _row(name) | {"tokens": parse_record(PreparedBlock, read_json(done), str(done)).num_tokens}
            else:
                yield _row(name, json.dumps(block, ensure_ascii=False).encode())
    except UserError as error:
        yield _row(error=str(error))


def finish_block(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """Second stage: make a block's shard, unless it is there.

    Whole sequences are written; the tokens left over are kept in the block's record, for a shard of left-overs.

    Returns:
        Its name and number of tokens, or the error's sentence.
    """
    done = {name: row[name] for name in ("name", "tokens", "error")}
    if not row["text"]:
        return done
    try:
        with outbox(job.folder) as folder:
            block = [Piece(*piece) for piece in json.loads(row["text"])]
            record = _make_shard(row["name"], block, job, folder)
            write_json(record_path(folder, row["name"]), record.to_json())
    except UserError as error:
        return {"name": "", "tokens": 0, "error": str(error)}
    return done | {"tokens": record.num_tokens}


def _make_shard(name: str, block: list[Piece], job: Job, folder: Path) -> PreparedBlock:
    packed = pack_block(block, _tokenizer(job.folder / TOKENIZER_FILE), job.separator)
    num_sequences = len(packed.ids) // job.sequence_length
    end = num_sequences * job.sequence_length
    entry = None
    if num_sequences:
        rows = packed.ids[:end].reshape(num_sequences, job.sequence_length)
        entry = write_shard(folder, name, rows, packed.starts[packed.starts < end])
    return PreparedBlock(
        shard=entry,
        num_tokens=len(packed.ids),
        num_bytes=packed.num_bytes,
        rest=tuple(packed.ids[end:].tolist()),
        rest_starts=tuple((packed.starts[packed.starts >= end] - end).tolist()),
    )


@functools.lru_cache(maxsize=1)
def _tokenizer(path: Path) -> Tokenizer:
    """A task has one core, so the tokenizer gets one thread; a worker process loads it once."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(local_copy(path)))
