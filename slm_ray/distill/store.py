"""A logit store: a teacher's signal at every token of a folder of token shards, in parts of whole sequences.

Each part is one safetensors file. It holds, for ``n`` sequences of ``positions`` predicted tokens each,

- of kind ``top-k``: ``ids`` ``[n, positions, k]``, ``log_probs`` float16 of the same shape, ``tail`` float16
  ``[n, positions]``, the logarithm of the mass of all other tokens. Logarithms near zero keep their digits in float16
  down to 6e-8, so a tail that is nearly everything is kept as well as one that is nearly nothing;
- of kind ``sampled``: ``lengths`` ``[n, positions]``, different tokens drawn at each position; ``ids`` and ``counts``
  ``[values]``, those of all positions one behind the other; ``starts`` int64 ``[n + 1]``, where each sequence's begin;
- ``checks`` uint32 ``[n]``, a CRC-32 of each sequence, so that reading one sequence checks that one and no more.

Whole numbers have the fewest bits that hold them.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

from slm_ray.config.digest import sha256_bytes, sha256_file
from slm_ray.config.errors import UserError
from slm_ray.data.order import drawn_sequences
from slm_ray.distill.config import SAMPLED, TOP_K, TOP_K_TAIL
from slm_ray.distill.signal import SparseSignal
from slm_ray.records.data import read_sealed
from slm_ray.records.files import check_inside, explain_os_error, write_bytes, write_json
from slm_ray.records.logits import CapturedPart, StoreManifest, work_folder
from slm_ray.runtime.progress import Console, Progress

Array = npt.NDArray[Any]
# Every mapped file costs a file descriptor, of which a process often has 1,024.
_MAPPED_FILES = 256
_PART_TOKENS, _PARTS = 1 << 14, 256
_LARGEST_PART_TOKENS = 1 << 20
_DTYPES = {"U8": "<u1", "U16": "<u2", "U32": "<u4", "I64": "<i8", "F16": "<f2"}
_PER_VALUE = ("ids", "counts")  # of a sampled part: one entry per drawn token, not per sequence


class LogitStore:
    """A store that is whole. Rows are read from mapped files and checked as they are read.

    Attributes:
        folder: Where it lies
        manifest: What it holds, what it cost, its parts and their digests
    """

    def __init__(self, folder: Path, manifest: StoreManifest) -> None:
        self.folder, self.manifest, self.request = folder, manifest, manifest.request
        self._parts = manifest.parts
        self._firsts = np.array([part.first for part in self._parts], dtype=np.int64)
        self._captured = drawn_sequences(self.request.of_sequences, self.request.num_sequences)
        self._map = functools.lru_cache(_MAPPED_FILES)(lambda number: _map_part(self._path(number)))

    @classmethod
    def open(cls, folder: Path) -> LogitStore:
        """Open a store: the manifest is checked against its digest, and every file against its size."""
        path = folder / StoreManifest.FILE
        if not path.is_file():
            if work_folder(folder).is_dir():
                raise UserError(f"the logit store {folder} is not finished: run the same `slm-ray logits` again")
            raise UserError(f"{folder} holds no logit store ({path.name} is missing): make one with slm-ray logits")
        manifest = read_sealed(folder, StoreManifest, f"delete the store {folder} and capture it again")
        check_inside([part.name for part in manifest.parts], path)
        for part in manifest.parts:
            path = folder / part.name
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                raise _damaged(path, f"the file is missing; it had {part.bytes:,} bytes") from None
            except OSError as error:
                raise explain_os_error(error, f"reading {path}") from error
            if found != part.bytes:
                raise _damaged(path, f"it has {found:,} bytes instead of {part.bytes:,}")
        return cls(folder, manifest)

    @property
    def num_sequences(self) -> int:
        """Sequences in it: all of its token shards, or those that ``drawn_sequences`` draws of them."""
        return self.request.num_sequences

    @property
    def num_positions(self) -> int:
        """Predicted tokens in it; the last one of a sequence predicts nothing and is not stored."""
        return self.num_sequences * (self.request.sequence_length - 1)

    def bytes_per_token(self) -> float:
        """Bytes of its files for every predicted token."""
        return sum(part.bytes for part in self._parts) / self.num_positions

    def ids_per_token(self) -> float:
        """Different token ids stored for a predicted token, on average."""
        return sum(part.num_values for part in self._parts) / self.num_positions

    def check_matches(
        self, *, teacher_digest: str, tokenizer_digest: str, tokens_digest: str, vocab_size: int,
        temperature: float | None = None, documents: str | None = None,
    ) -> None:  # fmt: skip
        """Refuse a store that was made from something else than what a run uses."""
        wanted = {
            "teacher_digest": teacher_digest, "tokenizer_digest": tokenizer_digest, "tokens_digest": tokens_digest,
            "temperature": temperature, "documents": documents,
        }  # fmt: skip
        for name, here in wanted.items():
            there = getattr(self.request, name)
            if here is not None and here != there:
                raise UserError(
                    f"the logit store {self.folder} does not match this run: its {name.replace('_', ' ')} is {there}, "
                    f"the run's is {here}; capture one from the run's own teacher and tokens"
                )
        if vocab_size < self.request.vocab_size:
            raise UserError(
                f"the logit store {self.folder} does not match this run: it is over {self.request.vocab_size:,} token "
                f"ids, and the model has {vocab_size:,} rows; use a model with a row for every token of the tokenizer"
            )

    def signal(self, indices: npt.NDArray[np.int64], kind: str | None = None) -> SparseSignal:
        """The teacher's signal at the predicted tokens of sequences.

        ``indices``: int64 ``[n]``, sequences of the token shards, in any order. ``kind``: ``top-k`` or ``top-k-tail``
        of a top-k store, ``sampled`` of a sampled one; all there is by default.

        Raises:
            IndexError: There is no such sequence.
        """
        kind = self._kind_of_signal(kind)
        rows = [self._sequence(int(index)) for index in indices]
        arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        num_rows = self.request.vocab_size
        if kind == SAMPLED:
            ids, log_probs = _padded(arrays, int(self.request.draws or 1))
            return SparseSignal(kind, ids, log_probs, None, self.request.temperature, num_rows)
        ids, log_probs = (torch.from_numpy(arrays[name]).flatten(0, 1) for name in ("ids", "log_probs"))
        tail = torch.from_numpy(arrays["tail"]).flatten().float() if kind == TOP_K_TAIL else None
        return SparseSignal(kind, ids.long(), log_probs.float(), tail, self.request.temperature, num_rows)

    def _kind_of_signal(self, wanted: str | None) -> str:
        there = (SAMPLED,) if self.request.kind == SAMPLED else (TOP_K_TAIL, TOP_K)
        if wanted is not None and wanted not in there:
            raise UserError(
                f"the logit store {self.folder} is {self.request.kind} and gives {' or '.join(there)}, not {wanted}: "
                f"capture another one, or distill with {there[0]}"
            )
        return wanted or there[0]

    def verify(self, console: Console | None = None) -> None:
        """Read every file and compare its digest with the manifest's."""
        progress = Progress(console, "checking the logit store", len(self._parts), "parts") if console else None
        for number, part in enumerate(self._parts):
            if sha256_file(self._path(number)) != part.sha256:
                raise _damaged(self._path(number), "its digest differs")
            if progress:
                progress.update(number + 1)

    def _path(self, number: int) -> Path:
        return self.folder / self._parts[number].name

    def _sequence(self, index: int) -> dict[str, Array]:
        """The arrays of one sequence of the shards, compared with its checksum."""
        place = int(np.searchsorted(self._captured, index))
        if place == len(self._captured) or self._captured[place] != index:
            of = f"{self.num_sequences} of {self.request.of_sequences} sequences are in {self.folder}"
            raise IndexError(f"there is no sequence {index}: {of}")
        number = int(np.searchsorted(self._firsts, place, side="right")) - 1
        row = place - int(self._firsts[number])
        arrays = self._map(number)
        found = _sequence_arrays(arrays, row)
        if _check_of(found) != arrays["checks"][row]:
            raise _damaged(self._path(number), f"sequence {index} differs from its checksum")
        if found["ids"].size and int(found["ids"].max()) >= self.request.vocab_size:
            raise _damaged(self._path(number), f"sequence {index} has an id that the teacher has no row for")
        return found


def _padded(arrays: Mapping[str, Array], draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawn tokens as rows of the longest one's width: ids, and logarithms of their shares of the draws."""
    lengths = torch.from_numpy(arrays["lengths"]).flatten().long()
    used = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(used.shape, dtype=torch.int64)
    ids[used] = torch.from_numpy(arrays["ids"]).long()
    shares = torch.full(used.shape, float("-inf"))
    shares[used] = torch.from_numpy(arrays["counts"]).float().div_(draws).log_()
    return ids, shares


def unsigned(most: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type for numbers up to ``most``."""
    return next(kind for kind in (np.uint8, np.uint16, np.uint32) if most <= np.iinfo(kind).max)


def id_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The type of stored ids: uint16 where the vocabulary fits."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def part_sequences(num_sequences: int, sequence_length: int) -> int:
    """Sequences in a part: seconds of a small teacher's work, and not too many files of a large store."""
    tokens = min(max(num_sequences * sequence_length // _PARTS, _PART_TOKENS), _LARGEST_PART_TOKENS)
    return max(1, tokens // sequence_length)


def write_part(
    folder: Path, number: int, first: int, count: int, arrays: dict[str, Array], seconds: float
) -> CapturedPart:
    """Write a part, and behind it its record; a part without a record is not finished."""
    checks = [_check_of(_sequence_arrays(arrays, row)) for row in range(count)]
    data = save({**arrays, "checks": np.array(checks, dtype=np.uint32)})
    path = folder / f"part-{number:05d}.safetensors"
    write_bytes(path, data)
    part = CapturedPart(
        name=path.name, first=first, num_sequences=count, num_values=int(arrays["ids"].size), bytes=len(data),
        sha256=sha256_bytes(data), seconds=round(seconds, 3),
    )  # fmt: skip
    write_json(record_file(folder, number), part.to_json())
    return part


def record_file(folder: Path, number: int) -> Path:
    """Where the record of a finished part lies until the store is whole."""
    return folder / f"part-{number:05d}.json"


def _sequence_arrays(arrays: Mapping[str, Array], row: int) -> dict[str, Array]:
    """The parts of each array that belong to one sequence, by name, in the order of the names."""
    found = {}
    for name in sorted(arrays):
        if name in ("checks", "starts"):
            continue
        per_value = "starts" in arrays and name in _PER_VALUE
        start, end = (arrays["starts"][row], arrays["starts"][row + 1]) if per_value else (row, row + 1)
        found[name] = arrays[name][start:end]
    return found


def _check_of(sequence: Mapping[str, Array]) -> int:
    """The CRC-32 of one sequence's arrays."""
    check = 0
    for array in sequence.values():
        check = zlib.crc32(array.view(np.uint8).reshape(-1).data, check)
    return check


def _map_part(path: Path) -> dict[str, Array]:
    """The arrays of a part, mapped from its file."""
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        begin = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        arrays = {}
        for name, entry in json.loads(raw[8:begin].tobytes()).items():
            start, end = entry["data_offsets"]
            arrays[name] = raw[begin + start : begin + end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        starts = arrays.get("starts", np.zeros(1, dtype=np.int64))
        if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] > len(arrays["ids"]):
            raise ValueError("offsets")
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, "its header is not readable") from error
    return arrays


def _damaged(path: Path, how: str) -> UserError:
    return UserError(f"{path} is not what was written ({how}): delete the store {path.parent} and capture it again")
