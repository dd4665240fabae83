"""The one token format: packed sequences in memory-mapped shards that any process can read in any order.

A folder holds a sealed manifest and, for every shard, its token ids ``[n, sequence_length]`` int32 and where in them
(flattened) documents begin, int64 and rising, both as plain ``.npy`` files. Search and evaluation use folders of one
small shard, training those of many.
"""

from __future__ import annotations

import functools
import hashlib
import io
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from slm_ray.config.digest import canonical_json, sha256_bytes
from slm_ray.config.errors import UserError
from slm_ray.records.data import Shard, ShardManifest, StoredFile, TokenSummary, read_sealed, write_sealed
from slm_ray.records.files import check_inside, explain_os_error, whole_folder, write_bytes

IDS, STARTS = ".ids.npy", ".starts.npy"
# Every mapped file costs a file descriptor, of which a process often has 1,024.
_MAPPED_FILES = 128
REMEDY = "delete the folder and prepare it again"

Ids = npt.NDArray[np.int32]
Starts = npt.NDArray[np.int64]


class TokenShards:
    """A folder of packed sequences. A shard's checksums are verified when a process first reads it.

    The fields of ``summary``, which says what the tokens are, are attributes of the shards, too.
    """

    def __init__(self, folder: Path, manifest: ShardManifest) -> None:
        self.folder, self.summary = folder, manifest.tokens
        self._shards = manifest.shards
        self._ends = np.cumsum([shard.num_sequences for shard in self._shards], dtype=np.int64)
        self._checked: set[tuple[int, str]] = set()
        self._map = functools.lru_cache(_MAPPED_FILES)(self._open_array)
        self.part, self.corpus, self.corpus_digest = self.summary.part, self.summary.corpus, self.summary.corpus_digest
        self.num_sequences, self.sequence_length = self.summary.num_sequences, self.summary.sequence_length
        self.num_documents, self.num_bytes = self.summary.num_documents, self.summary.num_bytes
        self.separator, self.vocab_size = self.summary.separator, self.summary.vocab_size
        self.tokenizer_digest, self.digest = self.summary.tokenizer_digest, self.summary.digest

    @classmethod
    def open(cls, folder: Path) -> TokenShards:
        """Open a folder of shards: reads and checks the manifest, and whether each shard is there in full length."""
        manifest = read_sealed(folder, ShardManifest, REMEDY)
        check_inside([shard.name for shard in manifest.shards], folder / ShardManifest.FILE)
        for shard in manifest.shards:
            for kind, file in ((IDS, shard.ids), (STARTS, shard.starts)):
                path = folder / f"{shard.name}{kind}"
                found = path.stat().st_size if path.is_file() else None
                if found != file.bytes:
                    state = "is missing" if found is None else f"has {found:,} bytes instead of {file.bytes:,}"
                    raise UserError(f"the shard {path} {state}: {REMEDY}")
        return cls(folder, manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its folder, and opened anew."""
        return TokenShards.open, (self.folder,)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, separators included."""
        return self.num_sequences * self.sequence_length

    @functools.cached_property
    def ids(self) -> Ids:
        """All sequences, read-only int32 ``[num_sequences, sequence_length]``; mapped where there is one shard."""
        parts = [self._map(number, IDS) for number in range(len(self._shards))]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        whole.flags.writeable = False
        return whole

    @functools.cached_property
    def document_starts(self) -> Starts:
        """Where in the flattened ids documents begin, int64 and rising."""
        offsets = np.append(0, self._ends[:-1]) * self.sequence_length
        return np.concatenate([self._map(number, STARTS) + offset for number, offset in enumerate(offsets)])

    def check_ids(self, num_rows: int, model: str) -> None:
        """Make sure that a model has an embedding row for every id that occurs."""
        if self.summary.max_id >= num_rows:
            raise UserError(
                f"the {self.part} text of '{self.corpus}' has token id {self.summary.max_id:,}, and {model} has "
                f"{num_rows:,} embedding rows (ids 0 to {num_rows - 1:,}): its tokenizer was given tokens that the "
                "model was not resized for; use the tokenizer the model was trained with, or text without them"
            )

    def rows(self, indices: npt.NDArray[np.int64]) -> Ids:
        """The sequences at ``indices`` (any order, repeats allowed).

        ``indices``: int64 ``[n]``, each from 0 to ``num_sequences`` - 1. Returns token ids, a new int32 array ``[n,
        sequence_length]``.
        """
        out = np.empty((len(indices), self.sequence_length), dtype=np.int32)
        for shard, where, local in self._by_shard(indices):
            out[where] = self._map(shard, IDS)[local]
        return out

    def positions(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The position of each token within its own document: 0 at a document's first token and at a sequence's.

        ``indices``: int64 ``[n]``, as for :meth:`rows`. Returns int32 ``[n, sequence_length]``.
        """
        length = self.sequence_length
        starts_document = np.zeros((len(indices), length), dtype=bool)
        for shard, where, local in self._by_shard(indices):
            starts = self._map(shard, STARTS)
            first, end = np.searchsorted(starts, local * length), np.searchsorted(starts, (local + 1) * length)
            for row, sequence, low, high in zip(where, local, first, end, strict=True):
                starts_document[row, starts[low:high] - sequence * length] = True
        column = np.arange(length, dtype=np.int32)
        return column - np.maximum.accumulate(np.where(starts_document, column, np.int32(0)), axis=1)

    def verify(self) -> None:
        """Read every shard and compare its checksums with the manifest's."""
        for number in range(len(self._shards)):
            for kind in (IDS, STARTS):
                self._map(number, kind)

    def copy_to(self, folder: Path) -> TokenShards:
        """Copy the folder, whole or not at all, and open the copy."""
        with whole_folder(folder) as temporary:
            for shard in self._shards:
                for kind in (IDS, STARTS):
                    shutil.copyfile(self.folder / f"{shard.name}{kind}", temporary / f"{shard.name}{kind}")
            shutil.copyfile(self.folder / ShardManifest.FILE, temporary / ShardManifest.FILE)
        return TokenShards.open(folder)

    def _by_shard(self, indices: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[Any], npt.NDArray[Any]]]:
        """(shard, places in ``indices``, sequence numbers within the shard) for every shard that is needed."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.num_sequences:
            raise IndexError(f"sequences {indices.min()} to {indices.max()} asked for, there are {self.num_sequences}")
        shards = np.searchsorted(self._ends, indices, side="right")
        order = np.argsort(shards, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if indices.size else []
        found = []
        for where in groups:
            shard = int(shards[where[0]])
            first = self._ends[shard] - self._shards[shard].num_sequences
            found.append((shard, where, indices[where] - first))
        return found

    def _open_array(self, number: int, kind: str) -> npt.NDArray[Any]:
        """One of a shard's arrays, mapped; its checksum is compared once per process (7 GB/s where it is cached)."""
        shard = self._shards[number]
        path, file = self.folder / f"{shard.name}{kind}", shard.ids if kind == IDS else shard.starts
        if (number, kind) not in self._checked:
            if self._crc32(path) != file.crc32:
                raise self._damaged(path, "its checksum differs")
            self._checked.add((number, kind))
        try:
            array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise explain_os_error(error, f"reading {path}") from error
        except (ValueError, EOFError, SyntaxError) as error:  # pickled objects, or no header of numpy's
            raise self._damaged(path, "it holds no plain numbers") from error
        wanted = (shard.num_sequences, self.sequence_length) if kind == IDS else array.shape[:1]
        if array.shape != wanted or array.dtype != (np.int32 if kind == IDS else np.int64):
            raise self._damaged(path, f"it holds {array.dtype} {list(array.shape)}")
        return array

    @staticmethod
    def _crc32(path: Path) -> int:
        try:
            return zlib.crc32(np.memmap(path, dtype=np.uint8, mode="r").data)
        except OSError as error:
            raise explain_os_error(error, f"reading {path}") from error

    def _damaged(self, path: Path, how: str) -> UserError:
        return UserError(
            f"the shard {path} is not what was written ({how}): delete the folder {self.folder} and prepare it again"
        )


def digest_array(array: npt.NDArray[Any]) -> str:
    """The SHA-256 of an array's shape and its little-endian bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256(canonical_json(list(array.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def write_shard(folder: Path, name: str, ids: Ids, starts: Starts) -> Shard:
    """Write one shard: two files, each whole or not at all.

    ``ids``: Token ids ``[n, sequence_length]``, at least one.
    """
    files = [
        _write_array(folder / f"{name}{kind}", array)
        for kind, array in ((IDS, ids.astype(np.int32)), (STARTS, starts.astype(np.int64)))
    ]
    return Shard(
        name=name, num_sequences=int(ids.shape[0]), num_documents=len(starts), max_id=int(ids.max()),
        ids=files[0], starts=files[1],
    )  # fmt: skip


def _write_array(path: Path, array: npt.NDArray[Any]) -> StoredFile:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")), allow_pickle=False)
    data = buffer.getvalue()
    write_bytes(path, data)
    return StoredFile(bytes=len(data), crc32=zlib.crc32(data), sha256=sha256_bytes(data))


def write_manifest(
    folder: Path, shards: Sequence[Shard], *, sequence_length: int, num_bytes: int, separator: int | None,
    vocab_size: int, part: str, corpus: str, corpus_digest: str | None, tokenizer_digest: str,
    made_from: Mapping[str, JsonValue],
) -> None:  # fmt: skip
    """Write the manifest that makes shards a whole; see :class:`TokenSummary` for its fields.

    ``shards`` are the entries from :func:`write_shard` in the order of the sequences.
    """
    tokens = TokenSummary(
        part=part, num_sequences=sum(shard.num_sequences for shard in shards), sequence_length=sequence_length,
        num_documents=sum(shard.num_documents for shard in shards), num_bytes=num_bytes, separator=separator,
        vocab_size=vocab_size, max_id=max(shard.max_id for shard in shards), corpus=corpus,
        corpus_digest=corpus_digest, tokenizer_digest=tokenizer_digest,
        digest=_content_digest(shards, sequence_length, separator),
    )  # fmt: skip
    write_sealed(folder, ShardManifest(tokens=tokens, made_from=dict(made_from), shards=tuple(shards)))


def _content_digest(shards: Iterable[Shard], sequence_length: int, separator: int | None) -> str:
    digests = [[shard.ids.sha256, shard.starts.sha256] for shard in shards]
    content = {"sequence_length": sequence_length, "separator": separator, "shards": digests}
    return sha256_bytes(canonical_json(content).encode())


def write_shards(
    folder: Path, rows: Ids, starts: Starts, *, vocab_size: int, num_bytes: int = 0, separator: int | None = None,
    part: str = "train", corpus: str = "arrays", corpus_digest: str | None = None, tokenizer_digest: str = "",
    made_from: Mapping[str, JsonValue] | None = None, shard_sequences: int = 1024,
) -> None:  # fmt: skip
    """Write sequences at hand as a folder of shards, whole or not at all; open it with ``TokenShards.open``.

    ``rows``: Token ids ``[n, sequence_length]``, at least one sequence. ``num_bytes``: UTF-8 bytes of the text that the
    tokens stand for.
    """
    length = rows.shape[1]
    with whole_folder(folder) as temporary:
        shards = []
        for number, first in enumerate(range(0, len(rows), shard_sequences)):
            part_rows = rows[first : first + shard_sequences]
            low, high = np.searchsorted(starts, [first * length, (first + len(part_rows)) * length])
            shards.append(write_shard(temporary, f"shard-{number:05d}", part_rows, starts[low:high] - first * length))
        write_manifest(
            temporary, shards, sequence_length=length, num_bytes=num_bytes, separator=separator, vocab_size=vocab_size,
            part=part, corpus=corpus, corpus_digest=corpus_digest, tokenizer_digest=tokenizer_digest,
            made_from=made_from or {},
        )  # fmt: skip
