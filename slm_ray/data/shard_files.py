"""Writing shards of token sequences, and the manifest that makes a folder of them one thing."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_ray.config.digest import canonical_json, digest_json, sha256_bytes
from slm_ray.records.files import whole_folder, write_bytes, write_json

MANIFEST_FILE = "manifest.json"
IDS, STARTS = ".ids.npy", ".starts.npy"  # endings of a shard's two files
FORMAT = 1  # raise it when the files change


def write_shard(folder: Path, name: str, ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Write one shard: two files, each whole or not at all.

    Args:
        folder: An existing folder.
        name: What the files are called, without an ending.
        ids: Token ids ``[n, sequence_length]``.
        starts: Where in the flattened ids documents begin, rising.

    Returns:
        Its entry in the manifest.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    entry: dict[str, Any] = {"name": name, "num_sequences": int(ids.shape[0]), "num_documents": len(starts)}
    for kind, array in ((IDS, ids.astype(np.int32)), (STARTS, starts.astype(np.int64))):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")), allow_pickle=False)
        data = buffer.getvalue()
        write_bytes(folder / f"{name}{kind}", data)
        entry |= {f"digest{kind}": sha256_bytes(data), f"file_bytes{kind}": len(data)}
    return entry


def content_digest(shards: Iterable[dict[str, Any]], sequence_length: int, separator: int | None) -> str:
    """The digest of a folder of shards; see :attr:`slm_ray.data.shards.TokenShards.digest`."""
    digests = [[shard[f"digest{IDS}"], shard[f"digest{STARTS}"]] for shard in shards]
    content = {"sequence_length": sequence_length, "separator": separator, "shards": digests}
    return sha256_bytes(canonical_json(content).encode())


def write_manifest(
    folder: Path,
    shards: Sequence[dict[str, Any]],
    *,
    sequence_length: int,
    num_bytes: int,
    separator: int | None,
    vocab_size: int,
    part: str,
    corpus: str,
    corpus_digest: str | None,
    tokenizer_digest: str,
    made_from: dict[str, Any] | None = None,
) -> None:
    """Write the manifest that makes shards a whole; what its fields mean says :class:`slm_ray.data.shards.TokenShards`.

    ``shards`` are the entries from :func:`write_shard` in the order of the sequences; ``made_from`` is all that decided
    what they are, for whoever reads the file.

    Raises:
        UserError: It cannot be written.
    """
    content = {
        "format": FORMAT,
        "part": part,
        "sequence_length": sequence_length,
        "num_sequences": sum(shard["num_sequences"] for shard in shards),
        "num_documents": sum(shard["num_documents"] for shard in shards),
        "num_bytes": num_bytes,
        "separator": separator,
        "vocab_size": vocab_size,
        "corpus": corpus,
        "corpus_digest": corpus_digest,
        "tokenizer_digest": tokenizer_digest,
        "digest": content_digest(shards, sequence_length, separator),
        "made_from": made_from,
        "shards": list(shards),
    }
    write_json(folder / MANIFEST_FILE, {**content, "manifest_digest": digest_json(content)})


def write_shards(
    folder: Path,
    rows: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    *,
    vocab_size: int,
    num_bytes: int = 0,
    separator: int | None = None,
    part: str = "train",
    corpus: str = "arrays",
    corpus_digest: str | None = None,
    tokenizer_digest: str = "",
    shard_sequences: int = 1024,
) -> None:
    """Write sequences at hand as a folder of shards, whole or not at all; open it with ``TokenShards.open``.

    Args:
        folder: What the folder is called; replaced if it is there.
        rows: Token ids ``[n, sequence_length]``, at least one sequence.
        starts: Where in the flattened ids documents begin, rising.
        vocab_size: One more than the largest id the tokenizer can give.
        num_bytes: UTF-8 bytes of the text that the tokens stand for.
        separator: The id behind each document, if there is one.
        part: ``calibration``, ``train`` or ``held_out``.
        corpus: Name of the corpus.
        corpus_digest: Its digest.
        tokenizer_digest: See :func:`slm_ray.data.tokenizer_digest`.
        shard_sequences: Sequences in a shard.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    length = rows.shape[1]
    with whole_folder(folder) as temporary:
        entries = []
        for number, first in enumerate(range(0, len(rows), shard_sequences)):
            part_rows = rows[first : first + shard_sequences]
            low, high = np.searchsorted(starts, [first * length, (first + len(part_rows)) * length])
            entries.append(write_shard(temporary, f"shard-{number:05d}", part_rows, starts[low:high] - first * length))
        write_manifest(
            temporary, entries, sequence_length=length, num_bytes=num_bytes, separator=separator, vocab_size=vocab_size,
            part=part, corpus=corpus, corpus_digest=corpus_digest, tokenizer_digest=tokenizer_digest,
        )  # fmt: skip
