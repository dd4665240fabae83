"""Reading a logit store: what a teacher says at every token of a folder of token shards."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.config.digest import sha256_file
from slm_ray.config.errors import UserError
from slm_ray.distill import store_format
from slm_ray.distill.signal import SparseSignal
from slm_ray.distill.store_format import SAMPLED, TOP_K, TOP_K_TAIL, Array, damaged, map_part
from slm_ray.records.files import explain_os_error
from slm_ray.runtime.progress import Console, Progress

# Every mapped file costs a file descriptor, of which a process often has 1,024.
_MAPPED_FILES = 256


class LogitStore:
    """A store that is whole. Rows are read from mapped files and checked as they are read.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself: the request it answers, what it cost, its parts and their digests.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Use :meth:`open`."""
        self.folder, self.manifest = folder, manifest
        self._request: dict[str, Any] = manifest["request"]
        self._parts: list[dict[str, Any]] = manifest["parts"]
        self._firsts = np.array([part["first"] for part in self._parts], dtype=np.int64)
        self._map = functools.lru_cache(_MAPPED_FILES)(lambda number: map_part(self._path(number)))

    @classmethod
    def open(cls, folder: Path) -> LogitStore:
        """Open a store: the manifest is checked against its digest, and every file against its size.

        Raises:
            UserError: There is no whole store, or a file is missing or cut short.
        """
        store = cls(folder, store_format.read_manifest(folder))
        for number, part in enumerate(store._parts):
            path = store._path(number)
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                raise damaged(path, f"the file is missing; it had {part['bytes']:,} bytes") from None
            except OSError as error:
                raise explain_os_error(error, f"reading {path}") from error
            if found != part["bytes"]:
                raise damaged(path, f"it has {found:,} bytes instead of {part['bytes']:,}")
        return store

    @property
    def kind(self) -> str:
        """``top-k`` or ``sampled``."""
        return str(self._request["kind"])

    @property
    def digest(self) -> str:
        """Equal contents have equal digests."""
        return str(self.manifest["digest"])

    @property
    def temperature(self) -> float:
        """The softmax temperature its probabilities were taken at."""
        return float(self._request["temperature"])

    @property
    def num_sequences(self) -> int:
        """Sequences in it, those of its token shards."""
        return int(self._request["num_sequences"])

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence; the last one predicts nothing and is not stored."""
        return int(self._request["sequence_length"])

    @property
    def num_positions(self) -> int:
        """Predicted tokens in it."""
        return self.num_sequences * (self.sequence_length - 1)

    def bytes_per_token(self) -> float:
        """Bytes of its files for every predicted token."""
        return float(sum(part["bytes"] for part in self._parts)) / self.num_positions

    def ids_per_token(self) -> float:
        """Different words stored for a predicted token, on average."""
        return float(sum(part["num_values"] for part in self._parts)) / self.num_positions

    def check_matches(
        self,
        *,
        teacher_digest: str,
        tokenizer_digest: str,
        tokens_digest: str,
        vocab_size: int,
        temperature: float | None = None,
        documents: str | None = None,
    ) -> None:
        """Refuse a store that was made from something else than what a run uses.

        Args:
            teacher_digest: See :class:`slm_ray.models.teachers.Teacher`.
            tokenizer_digest: See :func:`slm_ray.data.tokenizer_digest`.
            tokens_digest: See :attr:`slm_ray.data.shards.TokenShards.digest`.
            vocab_size: Words of the student's output head.
            temperature: The run's, where it has to be the store's.
            documents: ``separate`` or ``joined``, where it has to be the store's.

        Raises:
            UserError: Something differs; both sides are named.
        """
        wanted = {
            "teacher_digest": teacher_digest, "tokenizer_digest": tokenizer_digest, "vocab_size": vocab_size,
            "tokens_digest": tokens_digest, "temperature": temperature, "documents": documents,
        }  # fmt: skip
        found = difference(self._request, {name: value for name, value in wanted.items() if value is not None})
        if found is not None:
            name, there, here = found
            raise UserError(
                f"the logit store {self.folder} does not match this run: its {name} is {there}, the run's is {here}; "
                "capture one from the run's own teacher and tokens"
            )

    def signal(self, indices: npt.NDArray[np.int64], kind: str | None = None) -> SparseSignal:
        """What the teacher says at the predicted tokens of sequences.

        Args:
            indices: int64 ``[n]``, each from 0 to ``num_sequences`` - 1, in any order.
            kind: ``top-k`` or ``top-k-tail`` of a top-k store, ``sampled`` of a sampled one; all there is by default.

        Returns:
            A signal of ``n * (sequence_length - 1)`` tokens; sampled ones are as wide as the longest token needs.

        Raises:
            UserError: The store has no such signal, or a sequence is not what was written; its file is named.
            IndexError: There is no such sequence.
        """
        kind = self._kind_of_signal(kind)
        rows = [self._sequence(int(index)) for index in indices]
        arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        if kind == SAMPLED:
            ids, log_probs = _padded(arrays, int(self._request["draws"]))
            return SparseSignal(kind, ids, log_probs, None, self.temperature)
        ids, log_probs = (torch.from_numpy(arrays[name]).flatten(0, 1) for name in ("ids", "log_probs"))
        tail = torch.from_numpy(arrays["tail"]).flatten().float() if kind == TOP_K_TAIL else None
        return SparseSignal(kind, ids.long(), log_probs.float(), tail, self.temperature)

    def _kind_of_signal(self, wanted: str | None) -> str:
        there = (SAMPLED,) if self.kind == SAMPLED else (TOP_K_TAIL, TOP_K)
        if wanted is not None and wanted not in there:
            raise UserError(
                f"the logit store {self.folder} is {self.kind} and gives {' or '.join(there)}, not {wanted}: capture "
                f"another one, or distill with {there[0]}"
            )
        return wanted or there[0]

    def verify(self, console: Console | None = None) -> None:
        """Read every file and compare its digest with the manifest's.

        Args:
            console: Where to say how far it is.

        Raises:
            UserError: A file is not what was written; it is named.
        """
        progress = Progress(console, "checking the logit store", len(self._parts), "parts") if console else None
        for number, part in enumerate(self._parts):
            if sha256_file(self._path(number)) != part["sha256"]:
                raise damaged(self._path(number), "its digest differs")
            if progress:
                progress.update(number + 1)

    def _path(self, number: int) -> Path:
        return self.folder / str(self._parts[number]["name"])

    def _sequence(self, index: int) -> dict[str, Array]:
        """The arrays of one sequence, compared with its checksum."""
        if not 0 <= index < self.num_sequences:
            raise IndexError(f"sequence {index} asked for, there are {self.num_sequences}")
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        row = index - int(self._firsts[number])
        arrays = self._map(number)
        found = store_format.sequence_arrays(arrays, row)
        if store_format.check_of(found) != arrays["checks"][row]:
            raise damaged(self._path(number), f"sequence {index} differs from its checksum")
        if found["ids"].size and int(found["ids"].max()) >= int(self._request["vocab_size"]):
            raise damaged(self._path(number), f"sequence {index} has a word that the teacher does not have")
        return found


def _padded(arrays: Mapping[str, Array], draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled words as rows of the longest one's width: ids, and logarithms of their shares of the draws."""
    lengths = torch.from_numpy(arrays["lengths"]).flatten().long()
    used = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(used.shape, dtype=torch.int64)
    ids[used] = torch.from_numpy(arrays["ids"]).long()
    shares = torch.full(used.shape, float("-inf"))
    shares[used] = torch.from_numpy(arrays["counts"]).float().div_(draws).log_()
    return ids, shares


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first of ``here``'s entries that is another one ``there``: what it is, there, and here."""
    for name, value in here.items():
        if there.get(name) != value:
            return name.replace("_", " "), there.get(name), value
    return None
