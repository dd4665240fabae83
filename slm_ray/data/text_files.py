"""Opening files, compressed or not, and reading plain text out of them."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from slm_ray.config.errors import UserError
from slm_ray.data.documents import Document
from slm_ray.data.pieces import split_text
from slm_ray.records.files import explain_os_error

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
LARGE_TEXT_CHARACTERS = 1 << 20
_CHUNK_BYTES = 1 << 20


def _open(path: Path) -> IO[bytes]:
    compression = path.suffix.lower()
    if compression == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == ".bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    if compression == ".xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if compression == ".zst":
        import pyarrow  # Python itself reads Zstandard from 3.14 on only

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressing by its ending.

    Raises:
        UserError: It cannot be read, or its compressed content is damaged.
    """
    try:
        with _open(path) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # bz2 and pyarrow say bad content this way
            raise _damaged(path, error) from error
        raise explain_os_error(error, f"reading {path}") from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or cut short ({error}): copy or download it again")


def not_utf8(path: Path, offset: int, where: str = "") -> UserError:
    """The error for bytes that are no UTF-8.

    Args:
        path: The file.
        offset: Position of the first bad byte, from 0, in the (decompressed) content.
        where: A place to name besides, such as ``, line 3``.
    """
    return UserError(
        f"{path}{where} is not UTF-8 text (byte {offset}): convert it, e.g. `iconv -f LATIN1 -t UTF-8 IN > OUT`, "
        "with the encoding it really has"
    )


def read_text(path: Path) -> Iterator[str]:
    r"""The text of a file in chunks, with line ends as ``\n`` and without a byte-order mark.

    Raises:
        UserError: The file cannot be read, or is not UTF-8; the first bad byte is named.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    fed, first = 0, True
    with open_bytes(path) as file:
        while True:
            data = file.read(_CHUNK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise not_utf8(path, fed - pending + error.start) from error
            fed += len(data)
            yield text.removeprefix("\ufeff") if first else text
            first = False
            if not data:
                return


def text_documents(path: Path, id: str, piece_size: int, always_split: bool) -> Iterator[Document]:
    """The documents of a text file: the file itself, or pieces of it, cut at blank lines where there are any.

    Args:
        path: The file.
        id: What to call it.
        piece_size: Characters per piece.
        always_split: Cut a file of any size; otherwise only one of more than 1 MiB (2**20 characters).
    """
    limit = 2 * piece_size if always_split else LARGE_TEXT_CHARACTERS
    buffer, cutting, numbers = "", always_split, itertools.count(1)
    for chunk in read_text(path):
        buffer += chunk
        if len(buffer) > limit:
            cutting = True
            *ready, buffer = split_text(buffer, piece_size)
            yield from (Document(f"{id}#{next(numbers)}", piece) for piece in ready)
    if not cutting:
        yield Document(id, buffer)
        return
    yield from (Document(f"{id}#{next(numbers)}", piece) for piece in split_text(buffer, piece_size))
