"""Rows of local files, as lm-eval's tasks take them: JSON, JSON lines, CSV or parquet."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slm_ray.config.digest import sha256_file
from slm_ray.config.errors import UserError, first_line
from slm_ray.records.files import explain_os_error
from slm_ray.runtime.copies import local_copy

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class LocalSplit:
    """The documents of one split of a task.

    Attributes:
        split: lm-eval's name of it.
        file: Where they are.
        shown: The file as the user knows it, relative to the data folder.
        select: Column and value of the task's rows, in a file that several tasks share.
        rename: Name in the file to the name that the task expects.
    """

    split: str
    file: str
    shown: str
    select: tuple[str, str] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a plan."""
        return asdict(self) | {"select": list(self.select) if self.select else None, "rename": dict(self.rename)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LocalSplit:
        """The inverse of :meth:`to_json`."""
        select = tuple(value["select"]) if value["select"] else None
        return cls(**{**value, "select": select})

    def settings(self) -> dict[str, Any]:
        """What of it decides a result: the bytes of the file and how they are read, not where the file lies."""
        return {
            "sha256": file_digest(Path(self.file)), "select": list(self.select) if self.select else None,
            "rename": dict(self.rename),
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """Its documents.

        Raises:
            UserError: The file cannot be read, a column to select by or to rename is missing, or nothing is left.
        """
        rows = read_rows(local_copy(Path(self.file)))
        if self.select:
            column, value = self.select
            rows = [row for row in rows if str(row.get(column)) == value]
        if not rows:
            where = f" whose '{self.select[0]}' is '{self.select[1]}'" if self.select else ""
            raise UserError(f"--task-data: {self.shown} has no rows{where}")
        return [self._renamed(row, number) for number, row in enumerate(rows, 1)]

    def _renamed(self, row: Row, number: int) -> dict[str, Any]:
        renamed = dict(row)
        for old, new in self.rename.items():
            if old not in row:
                raise UserError(
                    f"--task-data: tasks.yaml renames '{old}' to '{new}', but row {number} of {self.shown} has no "
                    f"'{old}', only {', '.join(row)}"
                )
            renamed[new] = renamed.pop(old)
        return renamed


@functools.lru_cache(maxsize=64)
def _digest(path: Path, modified_ns: int, size: int) -> str:
    return sha256_file(path)


def file_digest(path: Path) -> str:
    """A file's SHA-256; a file shared by many tasks is read once.

    Raises:
        UserError: It cannot be read.
    """
    try:
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise explain_os_error(error, f"--task-data: reading {path}") from error


def read_rows(path: Path) -> Sequence[Row]:
    """All rows of a file; the same few files are not parsed again for each task that shares them.

    Raises:
        UserError: It cannot be read or is not what its name says.
    """
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise explain_os_error(error, f"--task-data: reading {path}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--task-data: {path} is not UTF-8 text (byte {error.start}): convert it") from error


@functools.lru_cache(maxsize=4)
def _read(path: Path, modified_ns: int, size: int) -> Sequence[Row]:
    return list(_READERS[path.suffix.lower()](path))


def _object(value: Any, path: Path, where: str) -> Row:
    if isinstance(value, dict):
        return value
    raise UserError(
        f"--task-data: {where} of {path} is {json.dumps(value)[:60]}, and must be an object with named fields"
    )


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"--task-data: line {number} of {path} is not JSON ({error.msg}): one object per line"
                ) from error
            yield _object(value, path, f"line {number}")


def _json(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        hint = "; with one object per line, name it .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"--task-data: {path} is not JSON ({error.msg} at line {error.lineno}){hint}") from error
    if not isinstance(value, list):
        raise UserError(
            f"--task-data: {path} holds {type(value).__name__}, and must hold a list of objects, one per document"
        )
    for number, entry in enumerate(value, 1):
        yield _object(entry, path, f"entry {number}")


def _csv(path: Path) -> Iterator[Row]:
    import pandas

    try:
        # Whole columns of numbers become numbers; the words NA and None stay words.
        yield from pandas.read_csv(path, keep_default_na=False).to_dict("records")
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise UserError(f"--task-data: {path} is not CSV ({_plain(error)}): the first line names the fields") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"--task-data: {path} is not a parquet file ({_plain(error)})") from error


def _plain(error: Exception) -> str:
    return re.sub(r"\s+", " ", first_line(error)).rstrip(".")


_READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def local_dataset(splits: Sequence[LocalSplit], **_: Any) -> Any:
    """What lm-eval asks for in place of a download: a ``DatasetDict`` of a task's splits.

    Args:
        splits: Where each split is.
        _: The task's metadata, which lm-eval passes along.

    Raises:
        UserError: A file cannot be read, or a field has one type in one row and another elsewhere.
    """
    from datasets import Dataset, DatasetDict

    found = {}
    for one in splits:
        rows = one.rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        try:
            found[one.split] = Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
        except Exception as error:  # pyarrow and datasets raise several types where a column is of two minds
            raise UserError(
                f"--task-data: a field of {one.shown} is of different types in different rows ({_plain(error)}): "
                "give every row the same"
            ) from error
    return DatasetDict(found)
