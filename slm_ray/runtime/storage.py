"""Folders anywhere, through fsspec: of this machine, on a disk that machines share, or in a bucket (``s3://``, ``gs://``).

``--storage`` names one. A run is kept there a second time (:mod:`slm_ray.runtime.mirror`), and what workers on other
machines have to read reaches them through it (:mod:`slm_ray.runtime.shared`). Logins come from the environment, as the
providers' own tools read them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.config.redact import redact, secret_in
from slm_ray.records.files import temporary_name

STORAGE_VARIABLE = "SLM_RAY_STORAGE"
STORAGE_HELP = "keep the run here as well, a folder or s3://…; --resume fetches it from there on another machine"


def storage_of(given: str | None) -> str | None:
    """The storage, checked: as given, else ``$SLM_RAY_STORAGE``, else none."""
    address = given or os.environ.get(STORAGE_VARIABLE)
    if not address:
        return None
    scheme, separator, place = address.partition("://")
    if secret_in(address):
        raise UserError(
            f"--storage {redact(address)} holds a login, which would end in the run's records: give it by the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if separator and "?" in place:
        raise UserError(
            f"--storage {redact(address)} has options behind '?', which are not read: give them by the environment "
            "(AWS_ENDPOINT_URL, AWS_REGION)"
        )
    if not (place if separator else scheme).strip("/") and address != "/":
        raise UserError(f"--storage {address} names no place: give e.g. s3://bucket/folder")
    return address


def storage_for_workers(given: str | None, address: str | None) -> str | None:
    """Where a run's workers write themselves: the storage that was given; on a cluster ``$SLM_RAY_STORAGE`` as well.

    ``address``: As ``--address`` has it; None: all workers are on this machine. Returns an address or a whole path;
    None: the run folder.
    """
    storage = storage_of(given) if address else given
    return storage if storage is None or is_address(storage) else str(Path(storage).expanduser().resolve())


def is_address(location: str) -> bool:
    """Whether a place is named by an address and not by a path."""
    return "://" in location


def below(address: str, name: str) -> str:
    """The address of a name inside of a place."""
    return f"{address.rstrip('/')}/{name}"


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn what a file system raises, each library its own, into one sentence; for its calls alone."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"the storage {redact(address)} cannot be used ({first_line(error, 300).rstrip('.')}): check the address, "
            "the login and the network"
        ) from error


class Place:
    """A folder at an address; names are paths inside of it, with ``/``."""

    def __init__(self, address: str | Path) -> None:
        import fsspec

        self.address = str(address)
        location = self.address if is_address(self.address) else str(Path(self.address).expanduser().absolute())
        with reaching(self.address):
            self._system, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
        self._root = str(root).rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether it is a folder that this machine mounts."""
        protocol = self._system.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def path(self, name: str = "") -> str:
        """The file system's own path of a name."""
        return f"{self._root}/{name}" if name else self._root

    def sizes(self, name: str = "") -> dict[str, int]:
        """Every file below, by its name in the place, and its bytes."""
        root = self.path(name)
        with reaching(self.address):
            if not self._system.exists(root):
                return {}
            found: dict[str, Any] = self._system.find(root, detail=True)
        return {path[len(self._root) + 1 :]: int(entry["size"]) for path, entry in found.items()}

    def folders(self) -> list[str]:
        """The names of the folders directly in it."""
        with reaching(self.address):
            if not self._system.exists(self._root):
                return []
            entries = self._system.ls(self._root, detail=True)
        return [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None if it is not there."""
        with reaching(self.address):
            try:
                data: bytes = self._system.cat_file(self.path(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a small file; readers see the old one or the new one, whole."""
        with reaching(self.address), self._arriving(name) as path:
            self._system.pipe_file(path, data)

    def put(self, source: Path, name: str) -> None:
        """Copy a file there; readers see the old one or the new one, whole."""
        with reaching(self.address), self._arriving(name) as path:
            self._system.put_file(str(source), path)

    def get(self, name: str, target: Path) -> None:
        """Copy a file from there."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with reaching(self.address):
            self._system.get_file(self.path(name), str(target))

    def remove(self, name: str) -> None:
        """Delete a file there."""
        with reaching(self.address):
            self._system.rm_file(self.path(name))

    def remove_folder(self, name: str) -> None:
        """Delete a folder there, with what is in it; nothing to do where there is none."""
        with reaching(self.address):
            if self._system.exists(self.path(name)):
                self._system.rm(self.path(name), recursive=True)

    @contextmanager
    def _arriving(self, name: str) -> Iterator[str]:
        """Where to write a file: on a disk under a temporary name; in a bucket, where files appear whole, its own."""
        target = self.path(name)
        self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
        if not self.is_local:
            yield target
            return
        temporary = temporary_name(Path(target))
        try:
            yield str(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
