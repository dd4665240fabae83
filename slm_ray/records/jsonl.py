"""Append-only JSON-lines files: the one source of truth of a run.

A record is on the disk, whole and synced, before anything else may depend on it. A line cut short by a kill is dropped
when the file is opened again for appending, and passed over when it is only read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error


def _complete_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line that ends in a newline, with the offset just behind it."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, line


def scan_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every whole record of a file, with the offset just behind its line; a torn last line is passed over.

    Args:
        path: A JSON-lines file, or one that does not exist yet (no records).

    Yields:
        The offset behind the record, and the record.

    Raises:
        UserError: A line in the middle is not JSON, so the file was damaged and not merely cut short.
    """
    if not path.exists():
        return
    try:
        for number, (offset, line) in enumerate(_complete_lines(path), start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("no JSON object")
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number} is not a record ({error}): remove that line and resume"
                ) from error
            yield offset, record
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of :func:`scan_records`.

    Raises:
        UserError: A line in the middle is not JSON, so the file was damaged and not merely cut short.
    """
    return [record for _, record in scan_records(path)]


class RecordWriter:
    """Appends records to one file. One process at a time writes a file (the run folder's lock sees to it)."""

    def __init__(self, path: Path) -> None:
        """Open for appending and cut off a torn last line, if a kill left one.

        Raises:
            UserError: The file cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            end = 0
            if path.exists():
                for offset, _ in _complete_lines(path):
                    end = offset
            # Unbuffered, so that a failed write leaves nothing in Python's memory to be written later.
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise explain_os_error(error, f"opening {path}") from error

    def append(self, record: dict[str, Any]) -> None:
        """Write one record as one line and sync it.

        Raises:
            UserError: The disk is full. The file keeps every earlier record whole.
            ValueError: The record holds NaN or an infinity, which JSON cannot say.
        """
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        start = self._file.tell()
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(start)
            self._file.seek(start)
            raise explain_os_error(error, f"writing {self.path}") from error

    @property
    def end(self) -> int:
        """The offset behind the last record: bytes."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RecordWriter:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close on the way out."""
        self.close()
