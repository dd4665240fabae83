"""Where checkpoints lie: a local folder, or a place that pyarrow reaches (S3, Google Cloud Storage, Azure, HDFS).

All hold named folders, each with a manifest that makes it whole. One run at a time writes a place. A local folder that
a worker on another machine does not see is reached through the command's machine, on which it lies.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
from pyarrow import fs

from slm_ray.records.files import explain_os_error, temporary_name, whole_folder
from slm_ray.runtime.copies import fetch_file
from slm_ray.runtime.deliveries import send_file
from slm_ray.runtime.home import Home, home_of
from slm_ray.runtime.remote import is_address, open_filesystem, reaching

# What temporary_name calls folders that are written, deleted or on their way, and what staging folders are called.
_TEMPORARY = re.compile(r"\.step-\d{8,}\.(\d+)-[0-9a-f]{8}\.tmp")
_STAGING = "slm_ray-checkpoint."
_STAGING_NAME = re.compile(re.escape(_STAGING) + r"(\d+)-.+")
# Makes a folder whole: in a remote one it is written last and deleted first.
MANIFEST = "checkpoint.json"
# Lies in a remote folder while it is being filled or deleted.
UNFINISHED = "checkpoint.unfinished"


class Storage(Protocol):
    """Holds named folders."""

    def prepare(self) -> None:
        """Make the place and remove what killed writers left."""

    def folders(self) -> list[str]:
        """The names of the folders that are there, whole or not."""

    def read(self, folder: str, file: str) -> bytes | None:
        """The bytes of a small file; None if it is not there."""

    def publish(self, folder: str, write: Callable[[Path], None]) -> None:
        """Have a local folder filled, its manifest too, and make it appear under a name, whole or not at all."""

    def fetch(self, folder: str, files: Sequence[str]) -> AbstractContextManager[Path]:
        """A local folder with these files, for as long as the block lasts."""

    def remove(self, folder: str) -> None:
        """Delete a folder; a reader sees it whole or not at all."""


def open_storage(location: str | Path) -> Storage:
    """The storage of a path or an address such as ``s3://bucket/runs/1``.

    Raises:
        UserError: No file system takes the address, or it cannot be reached.
    """
    if not is_address(str(location)):
        return _local_storage(Path(location).expanduser().absolute())
    filesystem, path = open_filesystem(str(location))
    if isinstance(filesystem, fs.LocalFileSystem):
        return _local_storage(Path(path))
    return RemoteStorage(filesystem, path, str(location))


def _local_storage(root: Path) -> Storage:
    home = home_of(root)
    return LocalStorage(root) if home is None else HomeStorage(home, root)


def _remove_dead(parent: Path, pattern: re.Pattern[str]) -> None:
    """Delete the temporaries in a folder that were made by processes that are gone."""
    for path in parent.iterdir():
        found = pattern.fullmatch(path.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


class LocalStorage:
    """A folder of this machine, or of a file system that it mounts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """See :class:`Storage`."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            _remove_dead(self.root, _TEMPORARY)
        except OSError as error:
            raise explain_os_error(error, f"using {self.root} for checkpoints") from error

    def folders(self) -> list[str]:
        """See :class:`Storage`."""
        try:
            return [path.name for path in self.root.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise explain_os_error(error, f"reading {self.root}") from error

    def read(self, folder: str, file: str) -> bytes | None:
        """See :class:`Storage`."""
        path = self.root / folder / file
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explain_os_error(error, f"reading {path}") from error

    def publish(self, folder: str, write: Callable[[Path], None]) -> None:
        """See :class:`Storage`."""
        with whole_folder(self.root / folder) as temporary:
            write(temporary)

    @contextmanager
    def fetch(self, folder: str, files: Sequence[str]) -> Iterator[Path]:
        """See :class:`Storage`; nothing is copied."""
        yield self.root / folder

    def remove(self, folder: str) -> None:
        """See :class:`Storage`."""
        doomed = temporary_name(self.root / folder)
        try:
            os.replace(self.root / folder, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise explain_os_error(error, f"deleting {self.root / folder}") from error


class HomeStorage:
    """A folder of the command's machine, for a worker on another one that does not see it."""

    def __init__(self, home: Home, root: Path) -> None:
        self._home, self._root, self._there = home, root, LocalStorage(root)

    def prepare(self) -> None:
        """See :class:`Storage`."""
        self._home.run(self._there.prepare)

    def folders(self) -> list[str]:
        """See :class:`Storage`."""
        return self._home.run(self._there.folders)

    def read(self, folder: str, file: str) -> bytes | None:
        """See :class:`Storage`."""
        return self._home.run(self._there.read, folder, file)

    def publish(self, folder: str, write: Callable[[Path], None]) -> None:
        """See :class:`Storage`; the files are sent one by one, into a folder that then takes its name."""
        with _staging() as scratch:
            with whole_folder(scratch / folder) as temporary:
                write(temporary)
            local, arriving = scratch / folder, self._home.run(_arriving, self._root, folder)
            for path in sorted(local.rglob("*")):
                if path.is_file():
                    send_file(self._home, path, arriving / path.relative_to(local))
            self._home.run(_publish_arrived, self._there, folder, arriving)

    @contextmanager
    def fetch(self, folder: str, files: Sequence[str]) -> Iterator[Path]:
        """See :class:`Storage`; the files are copied, and the copies are gone after the block."""
        with _staging() as scratch:
            for file in files:
                (scratch / file).parent.mkdir(parents=True, exist_ok=True)
                fetch_file(self._home, self._root / folder / file, scratch / file)
            yield scratch

    def remove(self, folder: str) -> None:
        """See :class:`Storage`."""
        self._home.run(self._there.remove, folder)


def _arriving(root: Path, folder: str) -> Path:
    """A folder for files on their way; it is called as what killed writers leave, and goes with it."""
    path = temporary_name(root / folder)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise explain_os_error(error, f"writing {root}") from error
    return path


def _publish_arrived(storage: LocalStorage, folder: str, arrived: Path) -> None:
    def write(new: Path) -> None:
        for path in arrived.iterdir():
            os.replace(path, new / path.name)

    try:
        storage.publish(folder, write)
    finally:
        shutil.rmtree(arrived, ignore_errors=True)


class RemoteStorage:
    """A place behind a network. Files are uploaded one by one, the manifest last."""

    def __init__(self, filesystem: Any, root: str, address: str) -> None:
        self._files, self._root, self._address = filesystem, root.rstrip("/"), address

    def _path(self, *parts: str) -> str:
        return "/".join([self._root, *parts])

    def prepare(self) -> None:
        """See :class:`Storage`."""
        with reaching(self._address):
            self._files.create_dir(self._root, recursive=True)
            for folder in self.folders():
                if self.read(folder, MANIFEST) is None and self.read(folder, UNFINISHED) is not None:
                    self._files.delete_dir(self._path(folder))
        _remove_dead(Path(tempfile.gettempdir()), _STAGING_NAME)

    def _write(self, path: str, data: bytes) -> None:
        with self._files.open_output_stream(path) as stream:
            stream.write(data)

    def folders(self) -> list[str]:
        """See :class:`Storage`."""
        with reaching(self._address):
            entries = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return [entry.base_name for entry in entries if entry.type == fs.FileType.Directory]

    def read(self, folder: str, file: str) -> bytes | None:
        """See :class:`Storage`."""
        path = self._path(folder, file)
        with reaching(self._address):
            if self._files.get_file_info(path).type != fs.FileType.File:
                return None
            with self._files.open_input_stream(path) as stream:
                data: bytes = stream.read()
        return data

    def publish(self, folder: str, write: Callable[[Path], None]) -> None:
        """See :class:`Storage`."""
        with _staging() as scratch:
            with whole_folder(scratch / folder) as temporary:
                write(temporary)
            local = scratch / folder
            files = [path for path in sorted(local.rglob("*")) if path.is_file() and path != local / MANIFEST]
            if self.read(folder, MANIFEST) is not None:
                self.remove(folder)
            with reaching(self._address):
                self._files.create_dir(self._path(folder), recursive=True)
                self._write(self._path(folder, UNFINISHED), b"")
                for file in files:
                    self._upload(file, folder, file.relative_to(local))
                self._upload(local / MANIFEST, folder, Path(MANIFEST))
                self._files.delete_file(self._path(folder, UNFINISHED))

    def _upload(self, file: Path, folder: str, name: Path) -> None:
        target = self._path(folder, name.as_posix())
        self._files.create_dir(target.rpartition("/")[0], recursive=True)
        fs.copy_files(str(file), target, fs.LocalFileSystem(), self._files)

    @contextmanager
    def fetch(self, folder: str, files: Sequence[str]) -> Iterator[Path]:
        """See :class:`Storage`; the files are downloaded."""
        with _staging() as scratch:
            for file in files:
                (scratch / file).parent.mkdir(parents=True, exist_ok=True)
                with reaching(self._address):
                    fs.copy_files(self._path(folder, file), str(scratch / file), self._files, fs.LocalFileSystem())
            yield scratch

    def remove(self, folder: str) -> None:
        """See :class:`Storage`."""
        with reaching(self._address):
            self._write(self._path(folder, UNFINISHED), b"")
            self._files.delete_file(self._path(folder, MANIFEST))
            self._files.delete_dir(self._path(folder))


@contextmanager
def _staging() -> Iterator[Path]:
    """A local folder whose name says which process it belongs to."""
    path = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{os.getpid()}-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
