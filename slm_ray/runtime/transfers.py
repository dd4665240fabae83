"""A command's files, to the head of a cluster that it is not part of and back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error, fsync_folder, temporary_name
from slm_ray.runtime.luggage import Entry, Luggage, files_below
from slm_ray.runtime.progress import Console, Progress

_PORTION_BYTES = 8 << 20
_MEGA = 1e6


class Head(Protocol):
    """Calls of a :class:`HeadCommand` on the head."""

    def call(self, method: str, *args: Any) -> Any:
        """Call a method; gives what it returns."""


def send(head: Head, luggage: Luggage, console: Console) -> dict[str, Entry]:
    """Send what the head has not, or has otherwise; a run that it has is its own.

    Args:
        head: Takes the files.
        luggage: Which.
        console: Where to say how far it is.

    Returns:
        What the head has then.

    Raises:
        UserError: One cannot be read here or written there.
    """
    there: dict[str, Entry] = head.call("files", list(luggage.places))
    started = {run for run in luggage.runs if any(_is_below(name, run) for name in there)}
    wanted = {name: (place, entry) for place in luggage.places if place not in started
              for name, entry in _files_of(luggage, place).items() if there.get(name) != entry}  # fmt: skip
    with _telling(console, "sending files to the head", wanted) as progress:
        for name, (place, entry) in wanted.items():
            _send_file(head, _local(luggage, place, name), name, entry, progress)
    return there | {name: entry for name, (_, entry) in wanted.items()}


def _send_file(head: Head, path: Path, name: str, entry: Entry, progress: Progress) -> None:
    start, is_last = 0, False
    with _reading(path) as file:
        while not is_last:
            data = file.read(min(_PORTION_BYTES, entry.size - start))
            is_last = start + len(data) == entry.size or not data
            head.call("write", name, start, data, entry if is_last else None)
            start += len(data)
            progress.update(progress.done + len(data) / _MEGA)


def fetch(head: Head, luggage: Luggage, before: Mapping[str, Entry], console: Console) -> None:
    """Bring back what the command wrote.

    Of a run's folder that is all that is not here, or is otherwise here; elsewhere what the command has changed there,
    for what was changed here since it was sent is newer.

    Args:
        head: Has the files.
        luggage: Where they belong.
        before: What the head had before the command.
        console: Where to say how far it is.

    Raises:
        UserError: One cannot be read there or written here, or would lie outside of the command's places.
    """
    found: dict[str, Entry] = head.call("files", list(luggage.places))
    wanted = dict[str, tuple[str, Entry]]()
    for place in luggage.places:
        known = _files_of(luggage, place) if place in luggage.runs else before
        wanted |= {name: (place, entry) for name, entry in found.items()
                   if _is_below(name, place) and known.get(name) != entry}  # fmt: skip
    with _telling(console, "fetching files from the head", wanted) as progress:
        for name, (place, entry) in wanted.items():
            _fetch_file(head, _local(luggage, place, name), name, entry, progress)


def _fetch_file(head: Head, path: Path, name: str, entry: Entry, progress: Progress) -> None:
    partial = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            while data := head.call("read", name, file.tell()):
                file.write(data)
                progress.update(progress.done + len(data) / _MEGA)
            file.flush()
            os.fsync(file.fileno())
        if partial.stat().st_size != entry.size:
            raise UserError(f"{path} changed on the head while it was fetched: give the command again, with --resume")
        os.utime(partial, ns=(entry.time, entry.time))
        os.replace(partial, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, f"writing {path}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _telling(console: Console, label: str, files: dict[str, tuple[str, Entry]]) -> Iterator[Progress]:
    total = sum(entry.size for _, entry in files.values()) / _MEGA
    progress = Progress(console, label, total, "MB")
    yield progress
    if files:
        progress.finish(f"{len(files):,} files, {total:,.1f} MB")


def _files_of(luggage: Luggage, place: str) -> dict[str, Entry]:
    """The files of a place as they are here, by their names on the head."""
    path = luggage.places[place]
    found = files_below(path.parent, [path.name])
    return {place + name.removeprefix(path.name): entry for name, entry in found.items()}


def _is_below(name: str, place: str) -> bool:
    return name == place or name.startswith(place + "/")


def _local(luggage: Luggage, place: str, name: str) -> Path:
    """Where a file of the head lies here.

    Raises:
        UserError: Its name leads out of its place: somebody else may have written it.
    """
    top = luggage.places[place]
    path = Path(os.path.normpath(str(top) + name.removeprefix(place)))
    if path != top and not path.is_relative_to(top):
        raise UserError(f"the head names a file outside of {top} ({name[:100]!r}): it is not fetched")
    return path


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
