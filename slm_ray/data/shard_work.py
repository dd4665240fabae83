"""The folder in which shards are made: what is finished stays there, and it takes its name when it is complete."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm_ray.data.shards import IDS, STARTS, write_manifest, write_shard
from slm_ray.records.base import parse_record
from slm_ray.records.data import PreparedBlock, Shard, ShardManifest, read_sealed
from slm_ray.records.files import explain_os_error, fsync_folder, read_json
from slm_ray.runtime.locks import held
from slm_ray.runtime.progress import Console

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOCK_FILE = ".lock"
_REST_SEQUENCES = 4096  # in a shard of left-overs


@contextlib.contextmanager
def locked(folder: Path, console: Console) -> Iterator[None]:
    """Hold a folder against other processes that make the same shards; a process that dies lets go of it.

    Raises:
        UserError: The folder cannot be made or written.
    """
    waits = f"another process prepares the same shards in {folder}: waiting for it"
    with held(folder / _LOCK_FILE, lambda: console.line(waits)):
        yield


def block_records(folder: Path, round: int) -> dict[str, PreparedBlock]:
    """The records of a round's finished blocks by name, in the order of the corpus."""
    return {path.stem: _read_block(path) for path in sorted(folder.glob(f"shard-{round}-*.json"))}


def _read_block(path: Path) -> PreparedBlock:
    return parse_record(PreparedBlock, read_json(path), str(path))


class _Rest:
    """The tokens that blocks leave over, packed one behind the other into shards of their own."""

    def __init__(self, folder: Path, sequence_length: int) -> None:
        self.folder, self.length = folder, sequence_length
        self.shards: list[Shard] = []
        self._ids: list[int] = []
        self._starts: list[int] = []
        self._continued: set[int] = set()

    def add(self, record: PreparedBlock) -> None:
        """Append what a block left over; it begins anew even in the middle of a document."""
        begin = len(self._ids)
        starts = record.rest_starts
        if record.rest and (not starts or starts[0] != 0):
            self._starts.append(begin)
            self._continued.add(begin)
        self._starts += [begin + start for start in starts]
        self._ids += record.rest
        if len(self._ids) >= _REST_SEQUENCES * self.length:
            self.flush()

    def flush(self) -> list[int]:
        """Write the whole sequences; give the tokens that do not fill one."""
        num_sequences = len(self._ids) // self.length
        end = num_sequences * self.length
        if num_sequences:
            rows = np.array(self._ids[:end], dtype=np.int32).reshape(num_sequences, self.length)
            starts = [start for start in self._starts if start < end]
            name = f"shard-rest-{len(self.shards):05d}"
            entry = write_shard(self.folder, name, rows, np.array(starts, dtype=np.int64))
            documents = entry.num_documents - len(self._continued.intersection(starts))
            self.shards.append(entry.model_copy(update={"num_documents": documents}))
        self._ids = self._ids[end:]
        self._continued = {start - end for start in self._continued if start >= end}
        self._starts = [start - end for start in self._starts if start >= end]
        return self._ids


def complete(folder: Path, final: Path, names: Sequence[str], tokenizer: Tokenizer, about: dict[str, Any]) -> None:
    """Make the folder of finished blocks a folder of shards, and give it its name.

    Args:
        folder: The work folder.
        final: What it is to be called.
        names: The blocks that belong to it, in the order of the corpus.
        tokenizer: Tells how much text stands for the last tokens, which fill no sequence and are left out.
        about: What the manifest says besides; see :func:`slm_ray.data.shards.write_manifest`.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    rest = _Rest(folder, about["sequence_length"])
    shards, num_bytes = [], 0
    for name in names:
        record = _read_block(folder / f"{name}.json")
        if record.shard:
            shards.append(record.shard)
        num_bytes += record.num_bytes
        rest.add(record)
    left_out = [id for id in rest.flush() if id != about["separator"]]
    num_bytes -= len(tokenizer.decode(left_out, skip_special_tokens=False).encode())
    write_manifest(folder, [*shards, *rest.shards], num_bytes=num_bytes, **about)
    take_name(folder, final)


def is_complete(folder: Path) -> bool:
    """Whether a work folder only lacks its name: its process was killed at the very end."""
    return (folder / ShardManifest.FILE).exists()


def take_name(folder: Path, final: Path) -> None:
    """Remove what only the work needed, and rename the folder.

    Raises:
        UserError: The folder cannot be written.
    """
    manifest = read_sealed(folder, ShardManifest, "delete the folder and prepare it again")
    kept = {f"{shard.name}{kind}" for shard in manifest.shards for kind in (IDS, STARTS)}
    try:
        for path in folder.iterdir():
            if path.name not in kept | {ShardManifest.FILE, _LOCK_FILE}:
                path.unlink()
        folder.rename(final)
        fsync_folder(final.parent)
        (final / _LOCK_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error(error, f"writing {final}") from error


def discard(folder: Path) -> None:
    """Remove a folder and all in it.

    Raises:
        UserError: That is not permitted.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise explain_os_error(error, f"deleting {folder}") from error
