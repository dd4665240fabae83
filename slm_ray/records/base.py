"""What every record has: one frozen class for writer and reader, a schema version, JSON out and in.

A record is either a whole JSON file (``write_record``, ``read_record``) or a line of a JSON-lines file (``RecordFile``,
``read_lines``). Files of another schema version, damaged ones and missing ones give one sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error, read_json, write_json

SCHEMA_VERSION = 2
"""Of all record files; raised when a field changes its meaning or goes."""

R = TypeVar("R", bound="Record")


class Part(BaseModel):
    """A part of a record: frozen, without unknown fields; a number is finite or None."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")


class Record(Part):
    """A whole file, or a line of one."""

    FILE: ClassVar[str]  # Its file's name inside the run's folder
    version: int = SCHEMA_VERSION


def check_version(value: Any, source: str, remedy: str = "") -> None:
    """Refuse JSON values of another schema version."""
    version = value.get("version", 1) if isinstance(value, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{source} has schema version {version} and this slm_ray reads version {SCHEMA_VERSION}: "
            f"{remedy or 'use the slm_ray that wrote it, or start a new run'}"
        )


def parse_record(cls: type[R], value: Any, source: str, remedy: str = "") -> R:
    """A record from JSON values; ``remedy`` says what to do about one that is of another version or damaged."""
    check_version(value, source, remedy)
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        remedy = remedy or "restore it or start a new run"
        raise UserError(f"{source} is damaged ({place}: {first['msg']}): {remedy}") from None


def write_record(folder: Path, record: Record) -> None:
    """Write a record as its file in a folder, whole or not at all."""
    write_json(folder / record.FILE, record.to_json())


def read_record(folder: Path, cls: type[R], remedy: str = "") -> R:
    """The record in a folder."""
    path = folder / cls.FILE
    return parse_record(cls, read_json(path), str(path), remedy)


def find_record(folder: Path, cls: type[R], remedy: str = "") -> R | None:
    """The record in a folder, or None where there is none yet."""
    return read_record(folder, cls, remedy) if (folder / cls.FILE).exists() else None


def _complete_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line that ends in a newline, with the offset just behind it; a line cut short by a kill is not complete."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, line


def scan_lines(path: Path, cls: type[R]) -> Iterator[tuple[int, R]]:
    """Every complete record of a JSON-lines file with the offset just behind its line: bytes."""
    if not path.exists():
        return
    try:
        for number, (offset, line) in enumerate(_complete_lines(path), start=1):
            source = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except ValueError as error:
                raise UserError(f"{source} is not a record ({error}): remove that line and resume") from error
            yield offset, parse_record(cls, value, source)
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error


def read_lines(path: Path, cls: type[R]) -> list[R]:
    """All records of :func:`scan_lines`."""
    return [record for _, record in scan_lines(path, cls)]


class RecordFile(Generic[R]):
    """Appends records to one JSON-lines file. One process at a time writes a file (the run folder's lock sees to it).

    A record is on the disk, whole and synced, before anything else may depend on it.
    """

    def __init__(self, path: Path) -> None:
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

    def append(self, record: R) -> None:
        """Write one record as one line and sync it."""
        line = record.model_dump_json().encode() + b"\n"
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

    def __enter__(self) -> RecordFile[R]:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close on the way out."""
        self.close()
