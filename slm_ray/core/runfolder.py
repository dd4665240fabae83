"""A run folder: resolved config, environment, records, results; one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from pathlib import Path
from typing import Any

from slm_ray.core.digest import digest_json
from slm_ray.core.environment import describe_environment
from slm_ray.core.errors import UserError
from slm_ray.core.files import explain_os_error, read_json, write_json

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
TRIALS_FILE = "trials.jsonl"
LOG_FILE = "run.log"
LOCK_FILE = ".lock"


class RunFolder:
    """The folder of one run. Create it with :meth:`create` or :meth:`open_existing`; close it to let go of its lock."""

    def __init__(self, path: Path) -> None:
        """Take the lock of an existing folder.

        Raises:
            UserError: Another process holds the lock, or the folder cannot be written.
        """
        self.path = path
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
    def create(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """Make a new run folder and write its resolved config and environment.

        Raises:
            UserError: The folder already holds a run, holds other files, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        except OSError as error:
            raise explain_os_error(error, f"creating the run folder {path}") from error
        if (path / CONFIG_FILE).exists():
            same = digest_json(read_json(path / CONFIG_FILE)) == digest_json(config)
            detail = "this same run" if same else "a run with another config"
            raise UserError(f"{path} already holds {detail}: continue it with --resume {path}, or choose another --out")
        if entries:
            raise UserError(f"{path} is not empty and holds no run: choose another --out")
        folder = cls(path)
        write_json(path / ENVIRONMENT_FILE, describe_environment())
        write_json(path / CONFIG_FILE, config)
        return folder

    @classmethod
    def open_existing(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run to continue it.

        Raises:
            UserError: There is no run in it.
        """
        if not (path / CONFIG_FILE).is_file():
            raise UserError(
                f"{path} holds no run to resume ({CONFIG_FILE} is missing): give the folder of an earlier run"
            )
        return cls(path)

    def config(self) -> dict[str, Any]:
        """The resolved config the run was started with."""
        config = read_json(self.path / CONFIG_FILE)
        if not isinstance(config, dict):
            raise UserError(f"{self.path / CONFIG_FILE} does not hold a config: restore it or start a new run")
        return config

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def forget(self, *folders: str) -> None:
        """Leave no run behind where a mistake was found before any work: the corrected command may use the same folder.

        Args:
            folders: What else was put into it so far.
        """
        for name in (CONFIG_FILE, ENVIRONMENT_FILE, LOG_FILE, LOCK_FILE):
            self.file(name).unlink(missing_ok=True)
        for name in folders:
            shutil.rmtree(self.file(name), ignore_errors=True)
        with contextlib.suppress(OSError):  # it was there before, with something in it that is not ours
            self.path.rmdir()

    def close(self) -> None:
        """Let go of the lock."""
        # Its file stays: if it went, a process that had just opened it would lock a file that nobody else sees.
        self._lock.close()
