"""Corpora from files and folders on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from slm_ray.config.digest import canonical_json, sha256_bytes, sha256_file
from slm_ray.config.errors import UserError
from slm_ray.data.documents import Corpus, Document
from slm_ray.data.record_files import csv_documents, json_documents, parquet_documents
from slm_ray.data.text_files import COMPRESSIONS, text_documents
from slm_ray.records.files import explain_os_error

TEXT_ENDINGS = (".txt", ".md")
RECORD_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

# With fewer text files than this, whole files would leave one of the three parts empty too often.
_ENOUGH_TEXT_FILES = 64
_PIECE_CHARACTERS = 8192
_LEAST_PIECE_CHARACTERS = 512
_EXPANSION = 3  # of text that was compressed; a guess for estimates only


def ending_of(path: Path) -> str:
    """The ending that says what a file holds, without that of its compression: ``.jsonl`` of ``a.jsonl.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_supported(path: Path) -> bool:
    """Whether a file of this name can be read; Parquet has its own compression."""
    ending = ending_of(path)
    return ending in TEXT_ENDINGS + RECORD_ENDINGS and not (
        ending == ".parquet" and path.suffix.lower() in COMPRESSIONS
    )


def _supported_sentence() -> str:
    return f"{', '.join(TEXT_ENDINGS + RECORD_ENDINGS)}, all but .parquet also with {', '.join(COMPRESSIONS)}"


@dataclass(frozen=True)
class _FileSlice:
    """Some of the files of a corpus, and how their texts are read.

    Attributes:
        root: The folder that documents are named from.
        paths: The files.
        text_field: The field of records that holds the text.
        domain_field: The field of records that names their domain, where it is asked for.
        piece_characters: Size of the pieces that text files are cut into.
        always_cut: Cut text files of any size, not only the large ones.
        num_bytes: About how much text they hold.
    """

    root: Path
    paths: tuple[Path, ...]
    text_field: str
    domain_field: str | None
    piece_characters: int
    always_cut: bool
    num_bytes: int

    def documents(self) -> Iterator[Document]:
        for path in self.paths:
            id, ending = path.relative_to(self.root).as_posix(), ending_of(path)
            if ending in TEXT_ENDINGS:
                if self.domain_field is not None:
                    raise UserError(
                        f"{path} is plain text, whose documents have no field '{self.domain_field}': leave out "
                        "--domain-field, or give each domain as --data NAME=FILE"
                    )
                yield from text_documents(path, id, self.piece_characters, self.always_cut)
            elif ending == ".parquet":
                yield from parquet_documents(path, id, self.text_field, self.domain_field)
            elif ending in (".csv", ".tsv"):
                delimiter = "," if ending == ".csv" else "\t"
                yield from csv_documents(path, id, self.text_field, delimiter, self.domain_field)
            else:
                yield from json_documents(path, id, self.text_field, self.domain_field)


def _text_bytes(path: Path) -> int:
    """About how much text a file holds."""
    size = path.stat().st_size
    return size * _EXPANSION if path.suffix.lower() in (*COMPRESSIONS, ".parquet") else size


@dataclass(frozen=True)
class _Files:
    """The files of a corpus, sorted."""

    root: Path
    paths: tuple[Path, ...]
    text_field: str
    domain_field: str | None = None

    def _slice(self) -> _FileSlice:
        """All files as one slice."""
        texts = [path for path in self.paths if ending_of(path) in TEXT_ENDINGS]
        always_cut = len(texts) < _ENOUGH_TEXT_FILES
        size = _PIECE_CHARACTERS
        if always_cut:
            share = sum(path.stat().st_size for path in texts) // _ENOUGH_TEXT_FILES
            size = min(max(share, _LEAST_PIECE_CHARACTERS), _PIECE_CHARACTERS)
        return _FileSlice(self.root, self.paths, self.text_field, self.domain_field, size, always_cut, num_bytes=0)

    def documents(self) -> Iterator[Document]:
        yield from self._slice().documents()

    def split(self, num_bytes: int) -> list[_FileSlice]:
        """Whole files, so many in a slice that it has about ``num_bytes`` of text.

        Raises:
            UserError: A file is not there any more.
        """
        groups: list[list[Path]] = []
        sizes: list[int] = []
        try:
            whole = self._slice()
            for path in self.paths:
                if not sizes or sizes[-1] >= num_bytes:
                    groups.append([])
                    sizes.append(0)
                groups[-1].append(path.absolute())
                sizes[-1] += _text_bytes(path)
        except OSError as error:
            raise explain_os_error(error, f"reading {self.root}") from error
        root = self.root.absolute()
        return [
            replace(whole, root=root, paths=tuple(paths), num_bytes=size)
            for paths, size in zip(groups, sizes, strict=True)
        ]

    def digest(self) -> str:
        """Of the bytes of every file, its ending, and the text field; where the files lie makes no difference."""
        files = [[ending_of(path), sha256_file(path)] for path in self.paths]
        return sha256_bytes(canonical_json({"files": files, "text_field": self.text_field}).encode())


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _paths_in(folder: Path) -> tuple[Path, ...]:
    """The readable files of a folder; README and LICENSE pages are left out where they accompany data files."""
    paths = [path for path in _walk(folder) if is_supported(path) and path.is_file()]
    if any(ending_of(path) in RECORD_ENDINGS for path in paths):
        paths = [path for path in paths if path.name.split(".")[0].upper() not in ("README", "LICENSE", "LICENCE")]
    return tuple(paths)


def local_corpus(name: str, path: Path, text_field: str, domain_field: str | None = None) -> Corpus:
    """The corpus of a file, or of every readable file in a folder and below it, in sorted order.

    Args:
        name: As the user gave it.
        path: The existing file or folder.
        text_field: The field of records that holds the text.
        domain_field: The field of records that names their domain, where it is asked for.

    Raises:
        UserError: The file is of a kind that cannot be read, is empty, or the folder has no readable file.
    """
    try:
        if path.is_dir():
            root, paths = path, _paths_in(path)
            if not paths:
                raise UserError(
                    f"the folder {path} has no file that can be read as text (supported: {_supported_sentence()})"
                )
        else:
            if not is_supported(path):
                raise UserError(
                    f"{path} is not of a kind that can be read (supported: {_supported_sentence()}): convert it"
                )
            root, paths = path.parent, (path,)
        if not any(file.stat().st_size for file in paths):
            raise UserError(f"{path} is empty: give a corpus with text in it")
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    files = _Files(root, paths, text_field, domain_field)
    return Corpus(name, files.documents, text_field, files.digest, files.split)
