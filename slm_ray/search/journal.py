"""The trials of a run: on the disk, and in memory only where on the disk they are."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, overload

from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error
from slm_ray.records.jsonl import RecordWriter, scan_records

Record = dict[str, Any]


class RecordsOnDisk(Sequence[Record]):
    """Records of a file in the order they were written, read again each time but the last: a search may have very many.

    The file is held open, so that its name may be away for a while.
    """

    def __init__(self, path: Path) -> None:
        """Of a file that is there.

        Raises:
            UserError: It cannot be read.
        """
        self._ends = array("Q")
        self._last: Record | None = None
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise explain_os_error(error, f"reading {path}") from error

    def add(self, end: int, record: Record) -> None:
        """Take note of one more, whose line ends before an offset."""
        self._ends.append(end)
        self._last = record

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, where: int) -> Record: ...

    @overload
    def __getitem__(self, where: slice) -> list[Record]: ...

    def __getitem__(self, where: int | slice) -> Record | list[Record]:
        if isinstance(where, slice):
            return [self[index] for index in range(*where.indices(len(self)))]
        index = range(len(self))[where]
        if index == len(self) - 1 and self._last is not None:
            return self._last
        start = self._ends[index - 1] if index else 0
        record: Record = json.loads(os.pread(self._file.fileno(), self._ends[index] - start, start))
        return record


class Journal:
    """Finished candidates by their genes. What is appended is on the disk before :meth:`append` returns."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process finished, and open the file for appending.

        Raises:
            UserError: The file is damaged in the middle, or cannot be written.
        """
        self._by_genes: dict[bytes, int] = {}
        found = list[int]()
        last: Record | None = None
        for end, last in scan_records(path):
            self._note(last, path)
            found.append(end)
        self._writer = RecordWriter(path)
        self.records = RecordsOnDisk(path)
        for end in found:
            assert last is not None
            self.records.add(end, last)
        self.resumed = len(self.records)

    def _note(self, record: Record, path: Path) -> None:
        key = _key(record["genes"])
        if key in self._by_genes:
            raise UserError(
                f"{path} has two records of the same candidate (trial {record['trial']}): remove one of them"
            )
        self._by_genes[key] = len(self._by_genes)

    def find(self, genes: str) -> Record | None:
        """The record of a candidate, if it is finished."""
        index = self._by_genes.get(_key(genes))
        return None if index is None else self.records[index]

    def append(self, record: Record) -> None:
        """Keep one finished candidate.

        Raises:
            UserError: The disk is full; nothing is kept of it, and every earlier record stays whole.
        """
        record = record | {"finished_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._writer.append(record)
        self._by_genes[_key(record["genes"])] = len(self.records)
        self.records.add(self._writer.end, record)

    def close(self) -> None:
        """Close the file for writing."""
        self._writer.close()


def _key(genes: str) -> bytes:
    """Genes in sixteen bytes; they may be long, and a search has very many."""
    return hashlib.blake2b(genes.encode(), digest_size=16).digest()
