"""A run's folder, kept a second time at a place that outlives the machine: ``--storage``.

Files are copied in the order in which they were written, each whole. What lies there is therefore what a kill at some
moment would have left, and a run is continued from it as after one.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error, whole_folder
from slm_ray.runtime.storage import Place, below

# Lies in a folder while that is mirrored: runs inside of it are not mirrored again.
_MARK = ".mirrored"
_EVERY_SECONDS = 10.0
_PATIENCE_SECONDS = 120.0  # with a storage that fails, once the run is over
_TRY_AGAIN_SECONDS = 2.0
# Where a training with --storage keeps its checkpoints itself: RUN/MODEL/step-00000100/…
_DIRECT = re.compile(r"[^/]+/step-\d{8,}/")
_LINES = {".jsonl", ".log"}  # grow by whole lines; everything else is renamed into place and never changes
_SURELY_SAME_BYTES = 1 << 20


_State = tuple[int, int]  # bytes and time of a file when it was copied


def _is_kept(name: str) -> bool:
    """Temporaries, locks and other hidden files are no part of a run."""
    return not any(part.startswith(".") for part in name.split("/"))


def bring_back(run: Path, storage: str, name: str | None = None) -> bool:
    """Fetch a run from a storage, if this machine has no folder of it.

    Checkpoints that the training itself keeps at the storage stay there. ``name`` is its name there, by default that of
    the folder.
    """
    if run.exists():
        return False
    place = Place(below(storage, name or run.resolve().name))
    paths = [path for path in place.sizes() if _is_kept(path) and not _DIRECT.match(path)]
    if not paths:
        return False
    with whole_folder(run) as temporary:
        for path in paths:
            place.get(path, temporary / path)
    return True


class Mirror:
    """Keeps a folder a second time, in a thread of its own. What it did not copy itself, it does not delete."""

    def __init__(self, folder: Path, storage: str, say: Callable[[str], None], name: str | None = None) -> None:
        """Look at what is there; nothing is copied yet.

        ``name``: Its name there; that of the folder by default.
        """
        self.folder, self.place, self._say = folder, below(storage, name or folder.resolve().name), say
        self._there = Place(self.place)
        sizes = self._there.sizes()
        self.found = len(sizes)  # files that were there before
        self._copied: dict[str, _State] = {}
        for name, path in self._here():
            state = _state(path)
            if path.suffix not in _LINES and sizes.get(name) == state[0] >= _SURELY_SAME_BYTES:
                self._copied[name] = state  # weights need not go again; small files do, at no cost
        self._problem: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="slm_ray-mirror")

    def start(self) -> None:
        """Begin to copy, now and every few seconds."""
        (self.folder / _MARK).touch()
        self._thread.start()

    def stop(self, moved_to: Path | None = None) -> None:
        """Copy what is left."""
        self._ended.set()
        self._thread.join()
        if moved_to is not None:
            self.folder = moved_to
        (self.folder / _MARK).unlink(missing_ok=True)
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self._try():
            if time.monotonic() > end:
                raise UserError(
                    f"{self.folder} is as it should be, but its copy is not whole: {self._problem}; then give --resume "
                    f"{self.folder} once more"
                )
            time.sleep(_TRY_AGAIN_SECONDS)

    def _keep(self) -> None:
        while True:
            self._try()
            if self._ended.wait(_EVERY_SECONDS):
                return

    def _try(self) -> bool:
        """One round; what goes wrong is said once and tried again in the next."""
        try:
            self._round()
        except UserError as error:
            if self._problem is None:
                self._say(f"the run goes on without its copy for now: {error}")
            self._problem = str(error)
            return False
        if self._problem is not None:
            self._say(f"{self.place} is reached again")
        self._problem = None
        return True

    def _here(self) -> Iterator[tuple[str, Path]]:
        """The folder's files, in the order in which they were written."""
        found = []
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if _is_kept(name):
                try:
                    if path.is_file():
                        found.append((path.stat().st_mtime_ns, name, path))
                except FileNotFoundError:
                    continue  # an old checkpoint, deleted a moment ago
        return ((name, path) for _, name, path in sorted(found))

    def _round(self) -> None:
        here = dict(self._here())
        for name, path in here.items():
            try:
                state = _state(path)
                if self._copied.get(name) != state:
                    self._copy(name, path)
                    self._copied[name] = state
            except (UserError, FileNotFoundError):
                if path.exists():
                    raise
        for name in [name for name in self._copied if name not in here]:
            self._there.remove(name)
            del self._copied[name]

    def _copy(self, name: str, path: Path) -> None:
        """Copy a file; of one that grows, the whole lines."""
        if path.suffix not in _LINES:
            self._there.put(path, name)
            return
        try:
            data = path.read_bytes()
        except OSError as error:
            raise explain_os_error(error, f"copying {path}") from error
        self._there.write(name, data[: data.rfind(b"\n") + 1])


def _state(path: Path) -> _State:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def lies_in_a_mirror(folder: Path) -> bool:
    """Whether a folder lies in one that is mirrored, as the stages of a pipeline do."""
    return any((parent / _MARK).exists() for parent in folder.resolve().parents)
