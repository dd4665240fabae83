"""A run's folder, kept a second time at a place that outlives the machine: ``--storage``.

Files are copied in the order in which they were written, each whole. What lies there is therefore what a kill at some
moment would have left, and a run is continued from it as after one.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.records.files import explain_os_error, whole_folder
from slm_ray.runtime.remote import below, check_location, is_address, open_filesystem, reaching

STORAGE_VARIABLE = "SLM_RAY_STORAGE"
STORAGE_HELP = "keep the run here as well, a folder or s3://…; --resume fetches it from there on another machine"
# Lies in a folder while that is mirrored: runs inside of it are not mirrored again.
_MARK = ".mirrored"
_EVERY_SECONDS = 5.0
_PATIENCE_SECONDS = 120.0  # with a storage that fails, once the run is over
_TRY_AGAIN_SECONDS = 2.0
# Where a training with --storage keeps its checkpoints itself: RUN/MODEL/step-00000100/…
_DIRECT = re.compile(r"[^/]+/step-\d{8,}/")
_GROWING = {".jsonl", ".log", ".wandb"}  # everything else is renamed into place and never changes
_SURELY_SAME_BYTES = 1 << 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class _State:
    """What a file was like when it was copied."""

    num_bytes: int
    modified: int


def storage_of(given: str | None) -> str | None:
    """Where runs are mirrored: as given, else ``$SLM_RAY_STORAGE``, else nowhere.

    Raises:
        UserError: It names no place, or holds a login.
    """
    place = given or os.environ.get(STORAGE_VARIABLE) or None
    if place:
        check_location(place)
    return place


class _Files:
    """The files of one place, a folder or an address."""

    def __init__(self, place: str) -> None:
        if is_address(place):
            self._system, self._root = open_filesystem(place)
        else:
            from pyarrow import fs

            self._system, self._root = fs.LocalFileSystem(), str(Path(place).expanduser().absolute())
        self._place = place

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """Every file and its bytes."""
        from pyarrow import fs

        with reaching(self._place):
            found = self._system.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        files = [entry for entry in found if entry.type == fs.FileType.File]
        return {entry.path[len(self._root.rstrip("/")) + 1 :]: entry.size for entry in files}

    def put(self, source: Path, name: str) -> None:
        """Copy a file there; readers see the old one or the new one, whole."""
        from pyarrow import fs

        local = isinstance(self._system, fs.LocalFileSystem)
        target = self._path(name)
        folder, _, last = target.rpartition("/")
        arriving = f"{folder}/.{last}.{os.getpid()}.tmp" if local else target  # objects of a bucket appear whole
        with reaching(self._place):
            self._system.create_dir(folder, recursive=True)
            fs.copy_files(str(source), arriving, fs.LocalFileSystem(), self._system)
            if local:
                self._system.move(arriving, target)

    def get(self, name: str, target: Path) -> None:
        """Copy a file from there."""
        from pyarrow import fs

        target.parent.mkdir(parents=True, exist_ok=True)
        with reaching(self._place):
            fs.copy_files(self._path(name), str(target), self._system, fs.LocalFileSystem())

    def remove(self, name: str) -> None:
        """Delete a file there."""
        with reaching(self._place):
            self._system.delete_file(self._path(name))


def _is_kept(name: str) -> bool:
    """Temporaries, locks and other hidden files are no part of a run."""
    return not any(part.startswith(".") for part in name.split("/"))


def bring_back(run: Path, storage: str, name: str | None = None) -> bool:
    """Fetch a run from a storage, if this machine has no folder of it.

    Checkpoints that the training itself keeps at the storage stay there.

    Args:
        run: The folder that it is to have here.
        storage: As ``--storage`` has it.
        name: Its name there; that of the folder by default.

    Returns:
        Whether it was fetched.

    Raises:
        UserError: The storage cannot be reached, or the disk is full.
    """
    if run.exists():
        return False
    files = _Files(below(storage, name or run.resolve().name))
    paths = [path for path in files.sizes() if _is_kept(path) and not _DIRECT.match(path)]
    if not paths:
        return False
    with whole_folder(run) as temporary:
        for path in paths:
            files.get(path, temporary / path)
    return True


class Mirror:
    """Keeps a folder a second time, in a thread of its own. What it did not copy itself, it does not delete.

    Attributes:
        place: Where.
        found: How many files were there before.
    """

    def __init__(self, folder: Path, storage: str, say: Say, name: str | None = None) -> None:
        """Look at what is there; nothing is copied yet.

        Args:
            folder: The folder of the run.
            storage: As ``--storage`` has it; the mirror is a folder in it.
            say: Takes what the user should know.
            name: Its name there; that of the folder by default.

        Raises:
            UserError: The storage names no place, or cannot be reached.
        """
        self.folder, self.place, self._say = folder, below(storage, name or folder.resolve().name), say
        self._files = _Files(self.place)
        there = self._files.sizes()
        self.found = len(there)
        self._copied: dict[str, _State] = {}
        for name, path in self._here():
            state = _state(path)
            if there.get(name) == state.num_bytes >= _SURELY_SAME_BYTES:
                self._copied[name] = state  # weights need not go again; small files do, at no cost
        self._problem: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="slm_ray-mirror")

    def start(self) -> None:
        """Begin to copy, now and every few seconds."""
        (self.folder / _MARK).touch()
        self._thread.start()

    def stop(self, moved_to: Path | None = None) -> None:
        """Copy what is left.

        Args:
            moved_to: The folder's name by now, where it was given another.

        Raises:
            UserError: The storage stays out of reach; the run itself is whole in its folder.
        """
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
            self._files.remove(name)
            del self._copied[name]

    def _copy(self, name: str, path: Path) -> None:
        """Copy a file; of one that grows meanwhile, what there is of it now."""
        if path.suffix not in _GROWING:
            self._files.put(path, name)
            return
        frozen = self.folder / f".mirror.{os.getpid()}.tmp"
        try:
            shutil.copyfile(path, frozen)
            self._files.put(frozen, name)
        except OSError as error:
            raise explain_os_error(error, f"copying {path}") from error
        finally:
            frozen.unlink(missing_ok=True)


def _state(path: Path) -> _State:
    stat = path.stat()
    return _State(stat.st_size, stat.st_mtime_ns)


def lies_in_a_mirror(folder: Path) -> bool:
    """Whether a folder lies in one that is mirrored, as the stages of a pipeline do."""
    return any((parent / _MARK).exists() for parent in folder.resolve().parents)
