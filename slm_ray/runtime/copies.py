"""Copies of the command's files on machines that do not see them: each machine gets a folder once.

Teachers, token shards, logit stores and models are folders of files that never change. A copy is named after the names,
sizes and times of the files, so the next run finds it, and it appears whole or not at all.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.records.files import cache_folder, explain_os_error, whole_folder
from slm_ray.runtime.home import Home, away
from slm_ray.runtime.locks import held

_CHUNK_BYTES = 32 << 20  # in Ray's object store at once
_COPIES = "copies"
_Listing = list[tuple[str, int, int]]


def local_copy(place: Path) -> Path:
    """Where a folder or a file of the command's machine can be read on this one.

    Args:
        place: A file, or a folder without what lies in folders within it; its files never change.

    Returns:
        The place itself on the command's machine, where no cluster was joined, and where the same files are seen under
        the same path (a disk that machines share); else a copy in this machine's cache, fetched by the first who asks.

    Raises:
        UserError: It cannot be read there or written here.
    """
    home = away()
    if home is None:
        return place
    listing = home.run(_listing, place)
    with contextlib.suppress(UserError):
        if _listing(place) == listing:
            return place
    target = cache_folder() / _COPIES / f"{place.name}-{digest_json([str(place), listing])[:16]}"
    with held(target.parent / f".{target.name}.lock"):
        if not target.is_dir():
            _fetch(home, place, listing, target)
    return target / place.name if listing and not listing[0][0] else target


def _listing(place: Path) -> _Listing:
    """(name, bytes, time) of a folder's files; of a file one entry without a name."""
    try:
        if place.is_file():
            entries = [("", place.stat())]
        else:
            paths = [path for path in sorted(place.iterdir()) if path.is_file() and not path.name.startswith(".")]
            entries = [(path.name, path.stat()) for path in paths]
    except OSError as error:
        raise explain_os_error(error, f"reading {place}") from error
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in entries]


def _fetch(home: Home, place: Path, listing: _Listing, target: Path) -> None:
    with whole_folder(target) as temporary:
        for name, num_bytes, _ in listing:
            got = fetch_file(home, place / name, temporary / (name or place.name))
            home.actor.count.remote(place.name, home.here, got)
            if got != num_bytes:
                raise UserError(f"{place / name} changed while it was copied to another machine: run the command again")


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
