"""Rows of local files (JSON lines, JSON, CSV, parquet), and the task files by which lm-eval reads them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError, first_line
from slm_ray.evaluate.tasks.catalogue import Leaf, tasks_root
from slm_ray.records.files import explain_os_error, read_json, whole_folder, write_json

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")
_MANIFEST = "manifest.json"
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
    file: Path
    shown: str
    select: tuple[str, str] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What of it decides a result: the bytes of the file and how they are read, not where the file lies."""
        select = list(self.select) if self.select else None
        return {"sha256": _file_digest(self.file), "select": select, "rename": dict(self.rename)}

    def rows(self) -> list[dict[str, Any]]:
        """Its documents.

        Raises:
            UserError: The file cannot be read, a column to select by or to rename is missing, or nothing is left.
        """
        rows = read_rows(self.file)
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


def _file_digest(path: Path) -> str:
    """A file's SHA-256; a file shared by many tasks is read once."""
    try:
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise explain_os_error(error, f"--task-data: reading {path}") from error


@functools.lru_cache(maxsize=64)
def _digest(path: Path, modified_ns: int, size: int) -> str:
    return sha256_file(path)


def read_rows(path: Path) -> Sequence[Row]:
    """All rows of a file; the same few files are not parsed again for each task that shares them.

    Raises:
        UserError: It cannot be read, or its content is not what its name says.
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
        # Whole columns of numbers become numbers; the texts NA and None stay texts.
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


def write_local(out: Path, tasks: Mapping[str, tuple[Leaf, Sequence[LocalSplit]]]) -> Path:
    """Write the rows of tasks into a folder that any machine can read them from.

    Args:
        out: The folder goes into this one, named after its content.
        tasks: Name to the task and its splits.

    Returns:
        The folder.

    Raises:
        UserError: A field has one type in one row and another elsewhere, or a file cannot be read or written.
    """
    import pyarrow
    import pyarrow.parquet

    digest = digest_json({name: [split.settings() for split in splits] for name, (_, splits) in tasks.items()})
    place = out / f"tasks-{digest}"
    if place.is_dir():
        return place
    manifest: dict[str, Any] = {}
    with whole_folder(place) as temporary:
        for name, (leaf, splits) in tasks.items():
            files = {}
            for split in splits:
                rows = split.rows()
                fields = list(dict.fromkeys(field for row in rows for field in row))
                try:
                    table = pyarrow.table({field: [row.get(field) for row in rows] for field in fields})
                except (pyarrow.ArrowException, TypeError) as error:
                    raise UserError(
                        f"--task-data: a field of {split.shown} is of different types in different rows "
                        f"({_plain(error)}): give every row the same"
                    ) from error
                files[split.split] = f"{len(manifest)}-{split.split}.parquet"
                pyarrow.parquet.write_table(table, temporary / files[split.split])
            unread = [key for key in _SPLIT_KEYS if leaf.config.get(key) not in files]
            manifest[name] = {"file": leaf.file, "unread": unread, "files": files}
        write_json(temporary / _MANIFEST, manifest)
    return place


def write_task_files(place: Path, folder: Path) -> Path:
    """Write lm-eval's task files of local rows: each includes lm-eval's own and takes its documents from here.

    Args:
        place: A folder of :func:`write_local`.
        folder: Where the files go.
    """
    for name, entry in read_json(place / _MANIFEST).items():
        config = {
            "include": str(tasks_root() / entry["file"]), "task": name, **dict.fromkeys(entry["unread"]),
            "dataset_kwargs": {"files": {split: str(place / file) for split, file in entry["files"].items()}},
        }  # fmt: skip
        text = yaml.safe_dump(config) + "custom_dataset: !function rows.local_dataset\n"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "rows.py").write_text(f"from {__name__} import local_dataset\n", encoding="utf-8")
    return folder


def local_dataset(files: Mapping[str, str], **_: Any) -> Any:
    """The ``DatasetDict`` of a task's local rows; lm-eval calls it in place of a download.

    Args:
        files: Split to parquet file.
        _: The task's metadata, which lm-eval passes along.
    """
    import pyarrow.parquet
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset(pyarrow.parquet.read_table(file)) for split, file in files.items()})
