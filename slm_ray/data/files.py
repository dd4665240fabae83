"""Corpora from files and folders on this machine: plain text, JSON, JSON lines, CSV, Parquet and Arrow.

JSON and CSV are read by Python's own readers, a line at a time, and not by ``datasets``: its columns turn a field that
a line lacks into an empty text and a wrong type into text, and its errors do not name lines.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import lzma
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slm_ray.config.digest import canonical_json, sha256_bytes, sha256_file
from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus, Document
from slm_ray.data.fields import Fields
from slm_ray.data.split import split_text
from slm_ray.records.files import explain_os_error

TEXT_ENDINGS = (".txt", ".md")
TABLE_ENDINGS = (".parquet", ".arrow")
RECORD_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *TABLE_ENDINGS)
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
LARGE_TEXT_CHARACTERS = 1 << 20

# With fewer text files than this, whole files would leave one of the three parts empty too often.
_ENOUGH_TEXT_FILES = 64
_PIECE_CHARACTERS = 8192
_LEAST_PIECE_CHARACTERS = 512
_EXPANSION = 3  # of text that was compressed; a guess for estimates only
_CHUNK_CHARACTERS = 1 << 20
_BATCH_ROWS = 256
_LARGEST_CSV_FIELD = (1 << 31) - 1


def ending_of(path: Path) -> str:
    """The ending that says what a file holds, without that of its compression: ``.jsonl`` of ``a.jsonl.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_supported(path: Path) -> bool:
    """Whether a file of this name can be read; tables have their own compression."""
    ending = ending_of(path)
    return ending in TEXT_ENDINGS + RECORD_ENDINGS and not (
        ending in TABLE_ENDINGS and path.suffix.lower() in COMPRESSIONS
    )


def local_corpus(name: str, path: Path, text_field: str, domain_field: str | None = None) -> Corpus:
    """The corpus of a file, or of every readable file in a folder and below it, in sorted order."""
    supported = f"{', '.join(TEXT_ENDINGS + RECORD_ENDINGS)}, all but tables also with {', '.join(COMPRESSIONS)}"
    try:
        if path.is_dir():
            root, paths = path, _paths_in(path)
            if not paths:
                raise UserError(f"the folder {path} has no file that can be read as text (supported: {supported})")
        else:
            if not is_supported(path):
                raise UserError(f"{path} is not of a kind that can be read (supported: {supported}): convert it")
            root, paths = path.parent, (path,)
        if not any(file.stat().st_size for file in paths):
            raise UserError(f"{path} is empty: give a corpus with text in it")
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    files = _Files(root, paths, text_field, domain_field)
    return Corpus(name, files.documents, text_field, files.digest, files.num_bytes)


def _paths_in(folder: Path) -> tuple[Path, ...]:
    """The readable files of a folder; README and LICENSE pages are left out where they accompany data files."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in sorted(names) if not name.startswith(".")]
    paths = [path for path in found if is_supported(path) and path.is_file()]
    if any(ending_of(path) in RECORD_ENDINGS for path in paths):
        paths = [path for path in paths if path.name.split(".")[0].upper() not in ("README", "LICENSE", "LICENCE")]
    return tuple(paths)


@dataclass(frozen=True)
class _Files:
    """The files of a corpus, sorted; documents are named from ``root``."""

    root: Path
    paths: tuple[Path, ...]
    text_field: str
    domain_field: str | None

    def documents(self) -> Iterator[Document]:
        texts = [path for path in self.paths if ending_of(path) in TEXT_ENDINGS]
        always_cut, size = len(texts) < _ENOUGH_TEXT_FILES, _PIECE_CHARACTERS
        if always_cut:
            share = sum(path.stat().st_size for path in texts) // _ENOUGH_TEXT_FILES
            size = min(max(share, _LEAST_PIECE_CHARACTERS), _PIECE_CHARACTERS)
        for path in self.paths:
            id = path.relative_to(self.root).as_posix()
            if ending_of(path) not in TEXT_ENDINGS:
                fields = Fields(self.text_field, self.domain_field)
                for where, number, record in _records(path, fields):
                    yield fields.document(record, f"{path}, {where} {number}", f"{id}:{number}")
                continue
            if self.domain_field is not None:
                raise UserError(
                    f"{path} is plain text, whose documents have no field '{self.domain_field}': leave out "
                    "--domain-field, or give each domain as --data NAME=FILE"
                )
            yield from _text_documents(path, id, size, always_cut)

    def num_bytes(self) -> int:
        """About how much text they hold."""
        try:
            return sum(
                path.stat().st_size * (_EXPANSION if path.suffix.lower() in (*COMPRESSIONS, ".parquet") else 1)
                for path in self.paths
            )
        except OSError as error:
            raise explain_os_error(error, f"reading {self.root}") from error

    def digest(self) -> str:
        """Of the bytes of every file, its ending, and the text field; where the files lie makes no difference."""
        files = [[ending_of(path), sha256_file(path)] for path in self.paths]
        return sha256_bytes(canonical_json({"files": files, "text_field": self.text_field}).encode())


Record = tuple[str, int, Any]
"""``line``, ``record`` or ``row``, its number from 1, and what it holds."""


def _records(path: Path, fields: Fields) -> Iterator[Record]:
    ending = ending_of(path)
    if ending in TABLE_ENDINGS:
        return _table_rows(path, fields)
    if ending in (".csv", ".tsv"):
        return _csv_rows(path, "," if ending == ".csv" else "\t")
    with _open_bytes(path) as file:
        is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return _json_list(path) if is_list else _json_lines(path)


def _json_lines(path: Path) -> Iterator[Record]:
    with _open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text) if text.strip() else ""
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{path}, line {number},") from error
            except json.JSONDecodeError as error:
                reason = f"{error.msg}, column {error.colno}"
                raise UserError(f"{path}, line {number} is not JSON ({reason}): mend or remove that line") from error
            yield "line", number, record


def _json_list(path: Path) -> Iterator[Record]:
    try:
        with _open(path) as file:
            records = json.load(file)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(
            f"{path} is not a JSON list ({error.msg}, {where}): mend it, or write one record per line"
        ) from error
    return (("record", number, record) for number, record in enumerate(records, start=1))


def _csv_rows(path: Path, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(_LARGEST_CSV_FIELD)
    with _open(path) as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        try:
            for number, row in enumerate(rows, start=1):
                yield "row", number, row
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num}, is not CSV ({error}): mend or remove that line") from error


def _table_rows(path: Path, fields: Fields) -> Iterator[Record]:
    """The rows of a Parquet or Arrow file, a few at a time, with the columns that are read."""
    import pyarrow

    try:
        for number, record in enumerate(itertools.chain.from_iterable(_batches(path, fields)), start=1):
            yield "row", number, record
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        kind = "Parquet" if ending_of(path) == ".parquet" else "Arrow"
        raise UserError(f"{path} is not a whole {kind} file ({error}): copy or download it again") from error
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error


def _batches(path: Path, fields: Fields) -> Iterator[list[Any]]:
    import pyarrow
    from pyarrow import parquet

    if ending_of(path) == ".parquet":
        with parquet.ParquetFile(path) as file:
            columns = fields.columns(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                yield batch.to_pylist()
        return
    with pyarrow.memory_map(str(path)) as source:
        try:
            batches: Iterable[Any] = pyarrow.ipc.open_stream(source)  # what datasets writes
        except pyarrow.ArrowInvalid:
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        for batch in batches:
            columns = fields.columns(batch.schema.names, str(path))
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.select(columns).slice(start, _BATCH_ROWS).to_pylist()


@contextlib.contextmanager
def _open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressing by its ending."""
    compression = path.suffix.lower()
    try:
        if compression == ".xz":
            file: Any = lzma.open(path)
        elif compression in COMPRESSIONS:
            import pyarrow

            file = io.BufferedReader(pyarrow.input_stream(str(path)))
        else:
            file = path.open("rb")
        with file:
            yield file
    except (EOFError, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise explain_os_error(error, f"reading {path}") from error
        # pyarrow reports bad content as an OSError without a number
        raise UserError(f"{path} is damaged or cut short ({error}): copy or download it again") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    r"""Open a file as text, with line ends as ``\n`` and without a byte-order mark."""
    with _open_bytes(path) as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise _not_utf8(str(path)) from error


def _not_utf8(where: str) -> UserError:
    return UserError(
        f"{where} is not UTF-8 text: convert it, e.g. `iconv -f LATIN1 -t UTF-8 IN > OUT`, with the encoding it really "
        "has"
    )


def _text_documents(path: Path, id: str, piece_size: int, always_cut: bool) -> Iterator[Document]:
    """A text file as one document, or as pieces of it, cut at blank lines where there are any."""
    limit = 2 * piece_size if always_cut else LARGE_TEXT_CHARACTERS
    buffer, cutting, numbers = "", always_cut, itertools.count(1)
    with _open(path) as file:
        while chunk := file.read(_CHUNK_CHARACTERS):
            buffer += chunk
            if len(buffer) > limit:
                cutting = True
                *ready, buffer = split_text(buffer, piece_size)
                yield from (Document(f"{id}#{next(numbers)}", piece) for piece in ready)
    if not cutting:
        yield Document(id, buffer)
        return
    yield from (Document(f"{id}#{next(numbers)}", piece) for piece in split_text(buffer, piece_size))
