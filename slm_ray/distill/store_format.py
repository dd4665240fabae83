"""The files of a logit store: parts of whole sequences, each one safetensors file, and the manifest over them.

A part holds, for ``n`` sequences of ``positions`` predicted tokens each,

- of kind ``top-k``: ``ids`` ``[n, positions, k]``, ``log_probs`` float16 of the same shape, ``tail`` float16
  ``[n, positions]``, the logarithm of what the other words have together. Logarithms near zero keep their digits in
  float16 down to 6e-8, so a tail that is nearly everything is told as well as one that is nearly nothing;
- of kind ``sampled``: ``lengths`` ``[n, positions]``, different words of each token; ``ids`` and ``counts``
  ``[values]``, those of all tokens one behind the other; ``starts`` int64 ``[n + 1]``, where each sequence's begin;
- ``checks`` uint32 ``[n]``, a CRC-32 of each sequence, so that reading one sequence checks that one and no more.

Whole numbers have the fewest bits that hold them.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from slm_ray.config.digest import digest_json, sha256_bytes
from slm_ray.config.errors import UserError
from slm_ray.records.files import check_inside, explain_os_error, read_json, write_bytes, write_json

TOP_K, TOP_K_TAIL, SAMPLED = "top-k", "top-k-tail", "sampled"
STORE_KINDS = (TOP_K, SAMPLED)
MANIFEST_FILE, REQUEST_FILE, LOG_FILE = "manifest.json", "request.json", "capture.log"
FORMAT = 1  # raise it when the files change

Array = npt.NDArray[Any]
_PART_TOKENS, _PARTS = 1 << 14, 256
_LARGEST_PART_TOKENS = 1 << 20
_DTYPES = {"U8": "<u1", "U16": "<u2", "U32": "<u4", "I64": "<i8", "F16": "<f2"}
_PER_VALUE = ("ids", "counts")  # of a sampled part: one entry per word, not per sequence


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


def part_name(number: int) -> str:
    """What the file of a part is called."""
    return f"part-{number:05d}.safetensors"


def sequence_arrays(arrays: Mapping[str, Array], row: int) -> dict[str, Array]:
    """The parts of each array that belong to one sequence, by name, in the order of the names."""
    found = {}
    for name in sorted(arrays):
        if name in ("checks", "starts"):
            continue
        per_value = "starts" in arrays and name in _PER_VALUE
        start, end = (arrays["starts"][row], arrays["starts"][row + 1]) if per_value else (row, row + 1)
        found[name] = arrays[name][start:end]
    return found


def check_of(sequence: Mapping[str, Array]) -> int:
    """The CRC-32 of one sequence's arrays."""
    check = 0
    for array in sequence.values():
        check = zlib.crc32(array.view(np.uint8).reshape(-1).data, check)
    return check


def write_part(
    folder: Path, number: int, first: int, count: int, arrays: dict[str, Array], began: float
) -> dict[str, Any]:
    """Write a part, and behind it its record; a part without a record is not finished.

    Args:
        folder: The work folder.
        number: The part's number.
        first: Its first sequence.
        count: How many there are.
        arrays: What is stored, without ``checks``.
        began: When its capture began, as ``time.monotonic`` says it.

    Returns:
        The record, which becomes the part's entry in the manifest.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    checks = [check_of(sequence_arrays(arrays, row)) for row in range(count)]
    data = save({**arrays, "checks": np.array(checks, dtype=np.uint32)})
    write_bytes(folder / part_name(number), data)
    record = {
        "name": part_name(number),
        "first": first,
        "num_sequences": count,
        "num_values": int(arrays["ids"].size),
        "bytes": len(data),
        "sha256": sha256_bytes(data),
        "seconds": round(time.monotonic() - began, 3),
    }
    write_json(record_file(folder, number), record)
    return record


def record_file(folder: Path, number: int) -> Path:
    """Where the record of a finished part lies until the store is whole."""
    return folder / f"part-{number:05d}.json"


def map_part(path: Path) -> dict[str, Array]:
    """The arrays of a part, mapped from its file.

    Raises:
        UserError: The file cannot be read, or its header is not what was written.
    """
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
        raise damaged(path, "its header is not readable") from error
    return arrays


def damaged(path: Path, how: str) -> UserError:
    """The error for a file that is no longer what was written."""
    return UserError(f"{path} is not what was written ({how}): delete the store {path.parent} and capture it again")


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest, with a digest of itself."""
    write_json(folder / MANIFEST_FILE, {**content, "manifest_digest": digest_json(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a store's manifest.

    Raises:
        UserError: There is no store, it is not finished, or the manifest was changed.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        if work_folder(folder).is_dir():
            raise UserError(f"the logit store {folder} is not finished: run the same `python -m slm_ray.logits` again")
        raise UserError(f"{folder} holds no logit store ({MANIFEST_FILE} is missing): make one with slm_ray.logits")
    manifest: dict[str, Any] = read_json(path)
    try:
        whole = manifest.pop("manifest_digest") == digest_json(manifest)
    except (AttributeError, KeyError, ValueError, TypeError):
        whole = False
    if not whole:
        raise damaged(path, "its digest differs")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: capture it again")
    try:
        check_inside([part["name"] for part in manifest["parts"]], path)
        fields = {"first", "bytes", "num_values", "sha256"}
        whole = isinstance(manifest["request"], dict) and all(fields <= part.keys() for part in manifest["parts"])
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise damaged(path, "fields are missing")
    return manifest


def work_folder(out: Path) -> Path:
    """Where a store grows until it is whole: beside its place, under its name and ``.partial``."""
    return out.with_name(f"{out.name}.partial")
