"""Old: files of the command's machine, in portions (pretrain/storage.py is its last user)."""

from __future__ import annotations

from pathlib import Path

from slm_ray.records.files import explain_os_error
from slm_ray.runtime.home import Home
from slm_ray.runtime.shared import local_copy

__all__ = ["fetch_file", "local_copy"]
_CHUNK_BYTES = 32 << 20  # in Ray's object store at once


def fetch_file(home: Home, path: Path, target: Path) -> int:
    """Copy a file of the command's machine, in portions.

    Returns:
        Its bytes.

    Raises:
        UserError: It cannot be read there or written here.
    """
    try:
        with target.open("wb") as file:
            while data := home.run(_read, path, file.tell()):
                file.write(data)
            return file.tell()
    except OSError as error:
        raise explain_os_error(error, f"writing {target}") from error


def _read(path: Path, start: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(_CHUNK_BYTES)
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
