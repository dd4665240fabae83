"""The trials of a run, on the disk and in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm_ray.core.errors import UserError
from slm_ray.core.records import RecordWriter, read_records


class Journal:
    """Finished candidates by their genes. What is appended is on the disk before :meth:`append` returns."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process finished, and open the file for appending.

        Raises:
            UserError: The file is damaged in the middle, or cannot be written.
        """
        self.records = read_records(path)
        self.resumed = len(self.records)
        self._by_genes: dict[str, dict[str, Any]] = {}
        for record in self.records:
            if record.get("genes") in self._by_genes:
                raise UserError(
                    f"{path} has two records of the same candidate (trial {record['trial']}): remove one of them"
                )
            self._by_genes[record["genes"]] = record
        self._writer = RecordWriter(path)

    def find(self, genes: str) -> dict[str, Any] | None:
        """The record of a candidate, if it is finished."""
        return self._by_genes.get(genes)

    def append(self, record: dict[str, Any]) -> None:
        """Keep one finished candidate.

        Raises:
            UserError: The disk is full; nothing is kept of it, and every earlier record stays whole.
        """
        record = record | {"finished_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._writer.append(record)
        self.records.append(record)
        self._by_genes[record["genes"]] = record

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
