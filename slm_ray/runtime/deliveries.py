"""Files that a worker makes for a folder of the command's machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slm_ray.records.files import explain_os_error, fsync_folder, temporary_name
from slm_ray.runtime.home import Home, home_of

_CHUNK_BYTES = 32 << 20


@contextlib.contextmanager
def outbox(folder: Path) -> Iterator[Path]:
    """A folder to write files into that belong into a folder of the command's machine.

    It is that folder itself where this process sees it. Elsewhere it is an empty one of this machine, whose files are
    sent when the block ends, records (``.json``) behind what they are of; each appears whole or not at all.

    Yields:
        Where to write.

    Raises:
        UserError: A file cannot be written.
    """
    home = home_of(folder)
    if home is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="slm_ray-outbox-") as name:
        yield Path(name)
        for path in sorted(Path(name).iterdir(), key=lambda one: (one.suffix == ".json", one.name)):
            send_file(home, path, folder / path.name)


def send_file(home: Home, path: Path, target: Path) -> None:
    """Send a file to the command's machine, where it appears whole or not at all.

    Raises:
        UserError: It cannot be written there.
    """
    temporary = temporary_name(target)
    with path.open("rb") as file:
        home.run(_append, temporary, file.read(_CHUNK_BYTES))  # an empty file is one as well
        while data := file.read(_CHUNK_BYTES):
            home.run(_append, temporary, data)
    home.run(_take_name, temporary, target)


def _append(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise explain_os_error(error, f"writing {path.parent}") from error


def _take_name(temporary: Path, target: Path) -> None:
    try:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        fsync_folder(target.parent)
    except OSError as error:
        raise explain_os_error(error, f"writing {target}") from error
