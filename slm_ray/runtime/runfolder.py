"""A run folder: resolved config, environment, records, results; one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.redact import redact
from slm_ray.records.base import read_record, write_record
from slm_ray.records.files import explain_os_error, read_json
from slm_ray.records.run import Environment, RunRecord
from slm_ray.runtime.environment import describe_environment
from slm_ray.runtime.mirror import Mirror, bring_back, lies_in_a_mirror
from slm_ray.runtime.progress import Console
from slm_ray.runtime.storage import storage_of

CONFIG_FILE, ENVIRONMENT_FILE = RunRecord.FILE, Environment.FILE
LOG_FILE = "run.log"
LOCK_FILE = ".lock"


class RunFolder:
    """The folder of one run. Create it with :meth:`create` or :meth:`open_existing`; close it to let go of its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []  # folders above it, nearest first
        self.begun = (path / CONFIG_FILE).exists()
        self._mirror: Mirror | None = None
        try:
            self._lock = (path / LOCK_FILE).open("w")
        except OSError as error:
            raise explain_os_error(error, f"using the run folder {path}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(f"{path} is in use by another process: wait for it, or choose another --out") from error

    @classmethod
    def create(cls, path: Path, record: RunRecord) -> RunFolder:
        """Make a new run folder, and write what the run is started with and on."""
        missing = [above for above in path.parents if not above.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        except OSError as error:
            raise explain_os_error(error, f"creating the run folder {path}") from error
        if (path / CONFIG_FILE).exists():
            same = read_json(path / CONFIG_FILE) == record.to_json()
            detail = "this same run" if same else "a run with another config"
            raise UserError(f"{path} already holds {detail}: continue it with --resume {path}, or choose another --out")
        if entries:
            raise UserError(f"{path} is not empty and holds no run: choose another --out")
        folder = cls(path)
        folder._made = missing
        write_record(path, describe_environment())
        write_record(path, record)
        try:
            folder.mirror_to(record.options.get("storage"), is_new=True)
        except UserError:
            folder.forget()
            raise
        return folder

    @classmethod
    def open_existing(cls, path: Path, storage: str | None = None) -> RunFolder:
        """Open the folder of an earlier run to continue it.

        ``storage``: The storage to mirror it to; None: the one that it had.
        """
        find_run(path, storage)
        folder = cls(path)
        try:
            given = read_record(path, RunRecord).options.get("storage")
        except UserError:
            folder.close()
            raise
        folder.mirror_to(storage or given)
        return folder

    def mirror_to(self, storage: str | None, *, is_new: bool = False) -> None:
        """Keep the folder a second time at a storage, from now on until it is closed.

        ``storage``: As ``--storage`` has it; None: ``$SLM_RAY_STORAGE``, or nowhere if that is not set. A folder in one
        that is mirrored is not mirrored by itself.
        """
        place = storage_of(storage)
        if place and not lies_in_a_mirror(self.path):
            try:
                self._mirror = Mirror(self.path, place, Console(self.file(LOG_FILE)).line)
                if is_new and self._mirror.found:
                    raise UserError(
                        f"{redact(self._mirror.place)} holds a run already: continue it with --resume {self.path}, or "
                        "choose another --out"
                    )
            except UserError:
                self._mirror = None
                self.close()
                raise
            self._mirror.start()

    def begin(self) -> None:
        """Say that the command's mistakes are behind it: from here on, a failure leaves a run to resume."""
        self.begun = True

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def forget(self, *folders: str) -> None:
        """Leave no run behind where a mistake was found before any work, so that the folder can be used again."""
        for name in (CONFIG_FILE, ENVIRONMENT_FILE, LOG_FILE, LOCK_FILE):
            self.file(name).unlink(missing_ok=True)
        for name in folders:
            shutil.rmtree(self.file(name), ignore_errors=True)
        self.close()  # and with it what a mirror has of the run by now
        with contextlib.suppress(OSError):  # it was there before, with something in it that is not ours
            for empty in (self.path, *self._made):
                empty.rmdir()

    def close(self) -> None:
        """Bring the mirror up to date, if there is one, and let go of the lock."""
        mirror, self._mirror = self._mirror, None
        try:
            if mirror is not None:
                mirror.stop()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        # Its file stays: if it went, a process that had just opened it would lock a file that nobody else sees.
        self._lock.close()


def find_run(path: Path, storage: str | None = None) -> None:
    """Make sure that an earlier run is there; one that this machine does not have is fetched from the storage.

    ``storage``: As ``--storage`` has it; None: ``$SLM_RAY_STORAGE``, or nowhere if that is not set.
    """
    place = storage_of(storage)
    if place:
        bring_back(path, place)
    if not (path / CONFIG_FILE).is_file():
        also = f", and {redact(place)} has none of that name" if place else ""
        raise UserError(
            f"{path} holds no run to resume ({CONFIG_FILE} is missing){also}: give the folder of an earlier run"
        )
