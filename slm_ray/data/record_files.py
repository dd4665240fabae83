"""Reading the texts out of JSON, JSON lines, CSV and Parquet files."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, nearest
from slm_ray.data.documents import Document
from slm_ray.data.text_files import not_utf8, open_bytes, read_text

_BATCH_ROWS = 256
_LARGEST_CSV_FIELD = (1 << 31) - 1


def missing_field(where: str, text_field: str, fields: Iterable[str]) -> UserError:
    """The error for records without the field that should hold the text."""
    return UserError(
        f"{where} has no field '{text_field}': {nearest(text_field, fields)}; choose one with --text-field"
    )


def record_text(record: Any, where: str, text_field: str) -> str:
    """The text of one record: the record itself if it is a string, else its text field (null counts as empty).

    Raises:
        UserError: The field is missing or is not text.
    """
    value = record
    if isinstance(record, dict):
        if text_field not in record:
            raise missing_field(where, text_field, [str(key) for key in record])
        value = record[text_field]
    elif not isinstance(record, str):
        raise UserError(
            f"{where} must be an object with a field '{text_field}' or a string, got {type(record).__name__}"
        )
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{where}: field '{text_field}' must hold text, got {type(value).__name__}: choose with --text-field"
        )
    return value or ""


def record_domain(record: Any, where: str, domain_field: str | None) -> str | None:
    """The domain that a record names, in a field or, with dots, a field of a field; None where none is asked for.

    Raises:
        UserError: The field is missing, or holds neither text nor a number.
    """
    if domain_field is None:
        return None
    value = record
    for name in domain_field.split("."):
        if not isinstance(value, dict) or name not in value:
            fields = [str(key) for key in value] if isinstance(value, dict) else []
            raise UserError(
                f"{where} has no field '{domain_field}': {nearest(name, fields)}; choose one with --domain-field"
            )
        value = value[name]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UserError(f"{where}: field '{domain_field}' must hold text or a whole number, got {type(value).__name__}")
    return str(value)


def json_documents(path: Path, id: str, text_field: str, domain_field: str | None = None) -> Iterator[Document]:
    """The documents of a ``.json`` or ``.jsonl`` file: one JSON list, or one record per line (blank lines passed over).

    Raises:
        UserError: Something in it is not UTF-8, not JSON, or has no text; the line is named.
    """
    with open_bytes(path) as file:
        is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if is_list:
        yield from _json_list(path, id, text_field, domain_field)
        return
    offset = 0
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text) if text.strip() else ""
            except UnicodeDecodeError as error:
                raise not_utf8(path, offset + error.start, f", line {number},") from error
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{where} is not JSON ({error.msg}, column {error.colno}): mend or remove that line"
                ) from error
            offset += len(line)
            value = record_text(record, where, text_field)
            yield Document(f"{id}:{number}", value, record_domain(record, where, domain_field if value else None))


def _json_list(path: Path, id: str, text_field: str, domain_field: str | None) -> Iterator[Document]:
    try:
        records = json.loads("".join(read_text(path)))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(
            f"{path} is not a JSON list ({error.msg}, {where}): mend it, or write one record per line"
        ) from error
    for number, record in enumerate(records, start=1):
        where = f"{path}, record {number}"
        value = record_text(record, where, text_field)
        yield Document(f"{id}:{number}", value, record_domain(record, where, domain_field if value else None))


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from (line + "\n" for line in lines)
    if rest:
        yield rest


def csv_documents(
    path: Path, id: str, text_field: str, delimiter: str, domain_field: str | None = None
) -> Iterator[Document]:
    """The documents of a CSV or TSV file whose first line names the columns.

    Raises:
        UserError: The column is missing, or a row is malformed; the line is named.
    """
    csv.field_size_limit(_LARGEST_CSV_FIELD)
    rows = csv.DictReader(_lines(read_text(path)), delimiter=delimiter)
    try:
        if text_field not in (rows.fieldnames or []):
            raise missing_field(f"{path}, line 1,", text_field, rows.fieldnames or [])
        for number, row in enumerate(rows, start=1):
            domain = record_domain(row, f"{path}, row {number}", domain_field)
            yield Document(f"{id}:{number}", row[text_field] or "", domain)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}, is not CSV ({error}): mend or remove that line") from error


def parquet_documents(path: Path, id: str, text_field: str, domain_field: str | None = None) -> Iterator[Document]:
    """The documents of a Parquet file, read a few rows at a time.

    Raises:
        UserError: It is not Parquet, the column is missing, or does not hold text.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise missing_field(str(path), text_field, names)
            numbers = itertools.count(1)
            columns = [text_field]
            if domain_field is not None:
                record_domain(dict.fromkeys(names, ""), str(path), domain_field.split(".")[0])
                columns.append(domain_field.split(".")[0])
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                for record in batch.to_pylist():
                    number = next(numbers)
                    where = f"{path}, row {number}"
                    text = record_text(record, where, text_field)
                    yield Document(f"{id}:{number}", text, record_domain(record, where, domain_field if text else None))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise UserError(f"{path} is not a whole Parquet file ({error}): copy or download it again") from error
