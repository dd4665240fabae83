"""Folders that workers on other machines have to read: teachers, tokens, stores. They never change.

The command puts one into the storage (:func:`publish`); a worker reads it where it lies if its machine sees it there,
and else fetches it once per machine into the cache (:func:`local_copy`). With one machine, nothing is copied.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.config.redact import redact
from slm_ray.config.units import format_bytes
from slm_ray.records.files import cache_folder, explain_os_error, whole_folder
from slm_ray.runtime.locks import held
from slm_ray.runtime.room import cluster_room
from slm_ray.runtime.storage import Place, below

SHARED_VARIABLE = "SLM_RAY_SHARED"
"""In workers of a cluster: the folder at the storage that says where this session's published folders lie."""

_SHARED, _COPIES = "shared", "copies"
_Listing = list[tuple[str, int, int]]
_sessions: list[_Session] = []  # of this process: the one it has open now


class _Session:
    """A command's connection to a cluster of several machines.

    Attributes:
        index: The folder at the storage with one entry per published path; None without a storage
    """

    def __init__(self, storage: str | None) -> None:
        self.storage = storage
        self.index = below(storage, f"{_SHARED}/session-{uuid.uuid4().hex[:12]}") if storage else None
        self.known: dict[Path, _Listing] = {}


@contextlib.contextmanager
def sharing(storage: str | None) -> Iterator[dict[str, str]]:
    """Let :func:`publish` publish to a storage inside the block.

    Returns environment variables that the cluster's workers must have.
    """
    session = _Session(storage)
    _sessions.append(session)
    try:
        yield {SHARED_VARIABLE: session.index} if session.index else {}
    finally:
        _sessions.remove(session)
        if session.index and session.known:
            with contextlib.suppress(UserError):
                Place(session.index).remove_folder("")


def publish(place: Path) -> Path:
    """Make a folder or a file readable for workers on all machines; nothing to do where they see it."""
    if not _sessions:
        return place
    session, listing, path = _sessions[-1], _listing(place), place.absolute()
    if session.known.get(path) == listing or not _is_needed_elsewhere(path, listing):
        return place
    if session.index is None:
        raise UserError(
            f"other machines of the cluster do not see {place}: give --storage, a folder that all of them see or a "
            "bucket (s3://…), through which they get it"
        )
    folder = f"{_SHARED}/{place.name}-{digest_json(listing)}"
    there = Place(session.storage or "")
    present = there.sizes(folder)
    total = sum(num_bytes for _, num_bytes, _ in listing)
    for name, num_bytes, _ in listing:
        target = f"{folder}/{name or place.name}"
        if present.get(target) != num_bytes:
            there.put(place / name if name else place, target)
    entry = {"folder": below(session.storage or "", folder), "files": listing}
    Place(session.index).write(f"{digest_json(str(path))}.json", json.dumps(entry).encode())
    session.known[path] = listing
    print(f"{place.name} is at the storage for other machines ({format_bytes(total)})", file=sys.stderr)
    return place


def local_copy(place: Path) -> Path:
    """Where a folder or a file of the command's machine can be read on this one."""
    index = os.environ.get(SHARED_VARIABLE)
    found = Place(index).read(f"{digest_json(str(place.absolute()))}.json") if index else None
    if found is None:
        if place.exists() or (index is None and not _is_on_another_machine()):
            return place
        raise UserError(
            f"{place} is not on this machine of the cluster: give --storage, a folder that all machines see or a "
            "bucket (s3://…)"
        )
    entry = json.loads(found)
    listing = [tuple(file) for file in entry["files"]]
    with contextlib.suppress(UserError):
        if _listing(place) == listing:
            return place
    is_file = bool(listing) and not listing[0][0]
    target = cache_folder() / _COPIES / Path(entry["folder"]).name
    with held(target.parent / f".{target.name}.lock"):
        if not target.is_dir():
            source = Place(entry["folder"])
            with whole_folder(target) as temporary:
                for name, num_bytes, _ in listing:
                    file = temporary / (name or place.name)
                    source.get(file.name, file)
                    if file.stat().st_size != num_bytes:
                        raise UserError(
                            f"{file.name} at {redact(entry['folder'])} is not whole: delete that folder and run the "
                            "command again"
                        )
    return target / place.name if is_file else target


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


def _looks_like(place: Path, listing: _Listing) -> bool:
    with contextlib.suppress(UserError):
        return [tuple(file) for file in listing] == _listing(place)
    return False


def _others() -> list[str]:
    """The other machines of the cluster that this process is in."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]


def _is_needed_elsewhere(place: Path, listing: _Listing) -> bool:
    """Whether there are, or may soon be, machines that do not see the same files under the same path."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    others = _others()
    if not others:
        there = ray.cluster_resources()
        return any(amount > there.get(name, 0.0) for name, amount in cluster_room().items())
    task = ray.remote(num_cpus=0)(_looks_like)
    on = [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)) for node in others]
    return not all(ray.get([one.remote(place, listing) for one in on]))


def _is_on_another_machine() -> bool:
    """Whether this process is a worker of a cluster of several machines."""
    ray = sys.modules.get("ray")
    return bool(ray is not None and ray.is_initialized() and _others())
