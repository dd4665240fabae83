"""The trials of a run: on the disk, and in memory only where on the disk they are."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from slm_ray.config.errors import UserError
from slm_ray.records.base import RecordFile, scan_lines
from slm_ray.records.files import explain_os_error
from slm_ray.records.search import Trial


class Journal(Sequence[Trial]):
    """Finished candidates in the order they were written, read again each time but the last: there may be very many.

    What is appended is on the disk before :meth:`append` returns. The file is held open, so that its name may be away
    for a while.

    Attributes:
        resumed: How many an earlier process wrote
    """

    def __init__(self, path: Path) -> None:
        self._by_genes: dict[bytes, int] = {}
        self._ends = array("Q")
        self._last: Trial | None = None
        for end, trial in scan_lines(path, Trial):
            if _key(trial.genes) in self._by_genes:
                raise UserError(
                    f"{path} has two records of the same candidate (trial {trial.trial}): remove one of them"
                )
            self._note(trial, end)
        self.resumed = len(self)
        self._writer = RecordFile[Trial](path)
        try:
            self._reader = path.open("rb", buffering=0)
        except OSError as error:
            raise explain_os_error(error, f"reading {path}") from error

    def _note(self, trial: Trial, end: int) -> None:
        self._by_genes[_key(trial.genes)] = len(self)
        self._ends.append(end)
        self._last = trial

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, where: int) -> Trial: ...

    @overload
    def __getitem__(self, where: slice) -> list[Trial]: ...

    def __getitem__(self, where: int | slice) -> Trial | list[Trial]:
        if isinstance(where, slice):
            return [self[index] for index in range(*where.indices(len(self)))]
        index = range(len(self))[where]
        if index == len(self) - 1 and self._last is not None:
            return self._last
        start = self._ends[index - 1] if index else 0
        return Trial.model_validate_json(os.pread(self._reader.fileno(), self._ends[index] - start, start))

    def find(self, genes: str) -> Trial | None:
        """The trial of a candidate, if it is finished."""
        index = self._by_genes.get(_key(genes))
        return None if index is None else self[index]

    def append(self, trial: Trial) -> None:
        """Keep one finished candidate."""
        self._writer.append(trial)
        self._note(trial, self._writer.end)

    def close(self) -> None:
        """Close the file for writing."""
        self._writer.close()


def _key(genes: str) -> bytes:
    """Genes in sixteen bytes; they may be long, and a search has very many."""
    return hashlib.blake2b(genes.encode(), digest_size=16).digest()
