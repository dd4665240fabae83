"""Tokens for training: sequences in memory-mapped shards that any process can read in any order."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError
from slm_ray.data.shard_files import FORMAT, IDS, MANIFEST_FILE, STARTS
from slm_ray.records.files import check_inside, explain_os_error, read_json
from slm_ray.runtime.progress import Console, Progress

# Every mapped file costs a file descriptor, of which a process often has 1,024.
_MAPPED_FILES = 128


class TokenShards:
    """A folder of packed sequences, and what must be known of them to use them rightly.

    Attributes:
        folder: Where the shards and their manifest lie.
        digest: SHA-256 over the shards' digests, the sequence length and the separator: what two runs must share to
            have the same sequences.
        num_sequences: Number of sequences.
        sequence_length: Tokens per sequence.
        num_bytes: UTF-8 bytes of the text that the tokens stand for.
        num_documents: Number of documents; one that goes on in the next shard counts once.
        part: ``calibration``, ``train`` or ``held_out``.
        corpus: Name of the corpus.
        corpus_digest: Its digest; None for a remote stream.
        tokenizer_digest: See :func:`slm_ray.data.tokenizer_digest`.
        vocab_size: One more than the largest id the tokenizer can give.
        separator: The id behind each document (the tokenizer's EOS), or None if the tokenizer has none.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Use :meth:`open`."""
        self.folder = folder
        self.digest: str = manifest["digest"]
        self.sequence_length: int = manifest["sequence_length"]
        self.num_bytes: int = manifest["num_bytes"]
        self.num_documents: int = manifest["num_documents"]
        self.part: str = manifest["part"]
        self.corpus: str = manifest["corpus"]
        self.corpus_digest: str | None = manifest["corpus_digest"]
        self.tokenizer_digest: str = manifest["tokenizer_digest"]
        self.vocab_size: int = manifest["vocab_size"]
        self.separator: int | None = manifest["separator"]
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._ends = np.cumsum([shard["num_sequences"] for shard in self._shards], dtype=np.int64)
        self.num_sequences = int(self._ends[-1])
        self._map = functools.lru_cache(_MAPPED_FILES)(self._open_array)

    @classmethod
    def open(cls, folder: Path) -> TokenShards:
        """Open a folder of shards: reads and checks the manifest, and looks whether each shard is there in full length.

        Raises:
            UserError: There is no manifest, it is not what was written, or a shard is missing or cut short.
        """
        manifest = read_json(folder / MANIFEST_FILE)
        remedy = "delete the folder and prepare it again"
        try:
            whole = manifest.pop("manifest_digest") == digest_json(manifest)
        except (AttributeError, KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise UserError(f"{folder / MANIFEST_FILE} is not what was written (its digest differs): {remedy}")
        if manifest.get("format") != FORMAT:
            raise UserError(f"{folder} was written by another version (format {manifest.get('format')}): {remedy}")
        try:
            check_inside([shard["name"] for shard in manifest["shards"]], folder / MANIFEST_FILE)
            shards = cls(folder, manifest)
            sizes = {f"{shard['name']}{kind}": int(shard[f"file_bytes{kind}"])
                     for shard in manifest["shards"] for kind in (IDS, STARTS)}  # fmt: skip
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            problem = "is not what was written (fields are missing)"
            raise UserError(f"{folder / MANIFEST_FILE} {problem}: {remedy}") from error
        for name, size in sizes.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
                raise UserError(f"the shard {path} {state}: {remedy}")
        return shards

    @property
    def num_tokens(self) -> int:
        """Number of tokens, separators included."""
        return self.num_sequences * self.sequence_length

    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The sequences at ``indices`` (any order, repeats allowed).

        Args:
            indices: int64 ``[n]``, each from 0 to ``num_sequences`` - 1.

        Returns:
            Token ids, a new int32 array ``[n, sequence_length]``.
        """
        out = np.empty((len(indices), self.sequence_length), dtype=np.int32)
        for shard, where, local in self._by_shard(indices):
            out[where] = self._map(shard, IDS)[local]
        return out

    def positions(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The position of each token within its own document: 0 at a document's first token and at a sequence's.

        Args:
            indices: int64 ``[n]``, as for :meth:`rows`.

        Returns:
            int32 ``[n, sequence_length]``.
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

    def verify(self, console: Console | None = None) -> None:
        """Read every shard and compare its digests with the manifest's.

        Args:
            console: Where to say how far it is.

        Raises:
            UserError: A shard is not what was written; it is named.
        """
        progress = Progress(console, f"shards of {self.part} tokens", len(self._shards), "shards") if console else None
        for number, shard in enumerate(self._shards):
            for kind in (IDS, STARTS):
                path = self.folder / f"{shard['name']}{kind}"
                try:
                    same = sha256_file(path) == shard[f"digest{kind}"]
                except OSError as error:
                    raise explain_os_error(error, f"reading {path}") from error
                if not same:
                    raise UserError(
                        f"the shard {path} is not what was written (its digest differs): delete the folder "
                        f"{self.folder} and prepare it again"
                    )
            if progress:
                progress.update(number + 1)
        if progress:
            progress.finish(f"checked {len(self._shards):,} shards")

    def describe(self) -> dict[str, Any]:
        """What a run's record keeps of it: JSON-like, without the tokens."""
        return {
            "part": self.part,
            "num_sequences": self.num_sequences,
            "sequence_length": self.sequence_length,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "separator": self.separator,
            "vocab_size": self.vocab_size,
            "corpus": self.corpus,
            "corpus_digest": self.corpus_digest,
            "tokenizer_digest": self.tokenizer_digest,
            "digest": self.digest,
        }

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
            first = self._ends[shard] - self._shards[shard]["num_sequences"]
            found.append((shard, where, indices[where] - first))
        return found

    def _open_array(self, shard: int, kind: str) -> npt.NDArray[Any]:
        path = self.folder / f"{self._shards[shard]['name']}{kind}"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise explain_os_error(error, f"reading {path}") from error
        except (ValueError, EOFError, SyntaxError) as error:  # pickled objects, or no header of numpy's
            raise UserError(
                f"the shard {path} is not what was written (it holds no plain numbers): delete the folder "
                f"{self.folder} and prepare it again"
            ) from error
