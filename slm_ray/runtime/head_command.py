"""A command on a cluster's head for somebody who is not part of the cluster: its files, its process, its output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

import slm_ray
from slm_ray.config.errors import UserError
from slm_ray.records.files import cache_folder, explain_os_error, fsync_folder
from slm_ray.runtime.luggage import Entry, files_below

_PORTION_BYTES = 8 << 20
_OUTPUT = ("output", "errors")
_PARENT_DEATH = 1  # prctl's PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None)


class HeadCommand:
    """Runs one command in a folder of the head; as an actor there, its calls come one after the other."""

    def __init__(self, folder: str) -> None:
        """Take the folder that stands for the one the command was given in.

        Args:
            folder: Its name; the same name is the same folder, so a run can go on in it.
        """
        self.root = cache_folder() / "commands" / folder
        self._process: subprocess.Popen[bytes] | None = None
        self._logs = {name: self.root / f".{name}-{os.getpid()}" for name in _OUTPUT}

    def version(self) -> str:
        """slm_ray's, on the head."""
        return slm_ray.__version__

    def cluster(self) -> str:
        """The address by which the head joins its own cluster."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    def files(self, places: list[str]) -> dict[str, Entry]:
        """The files of some places, by their name in the folder."""
        return files_below(self.root, [self._inside(place).relative_to(self.root).as_posix() for place in places])

    def write(self, name: str, start: int, data: bytes, entry: Entry | None) -> None:
        """Take a portion of a file; it takes its name with the last one.

        Args:
            name: In the folder.
            start: Where the bytes belong; 0 begins the file anew.
            data: The next bytes.
            entry: What the whole file is, with the last portion; None before.

        Raises:
            UserError: The disk is full, or the file is not what was said.
        """
        path = self._inside(name)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab" if start else "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if entry is not None:
                _finish_file(partial, path, entry)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise explain_os_error(error, f"writing {path} on the head") from error

    def read(self, name: str, start: int) -> bytes:
        """The next portion of a file; empty at its end."""
        try:
            with self._inside(name).open("rb") as file:
                file.seek(start)
                return file.read(_PORTION_BYTES)
        except OSError as error:
            raise explain_os_error(error, f"reading {name} on the head") from error

    def start(self, module: str, words: list[str]) -> None:
        """Start ``python -m MODULE WORDS`` in the folder; it ends when this process does."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("OMP_NUM_THREADS", None)  # Ray's, for an actor without CPUs
        if not environment.get("CUDA_VISIBLE_DEVICES"):
            environment.pop("CUDA_VISIBLE_DEVICES", None)
        command = [sys.executable, "-m", module, *words]
        self.root.mkdir(parents=True, exist_ok=True)
        self._forget_others()
        with self._logs["output"].open("wb") as output, self._logs["errors"].open("wb") as errors:
            self._process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                start_new_session=True, preexec_fn=_as_a_command,
            )  # fmt: skip

    def said(self, starts: tuple[int, int]) -> tuple[bytes, bytes, int | None]:
        """What the command printed beyond some bytes of its output and its errors, and its status if it has ended."""
        status = self._process.poll() if self._process else None  # before reading: nothing is printed after it
        output, errors = (
            self.read(self._logs[name].relative_to(self.root).as_posix(), start)
            for name, start in zip(_OUTPUT, starts, strict=True)
        )
        return output, errors, status

    def interrupt(self) -> None:
        """What Ctrl-C is to a command."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def clear(self) -> None:
        """Forget what was printed."""
        for path in self._logs.values():
            path.unlink(missing_ok=True)

    def _forget_others(self) -> None:
        """Remove what earlier commands printed here whose end nobody saw."""
        for path in (path for name in _OUTPUT for path in self.root.glob(f".{name}-*")):
            if not psutil.pid_exists(int(path.name.rpartition("-")[2])):
                path.unlink(missing_ok=True)

    def _inside(self, name: str) -> Path:
        path = Path(os.path.normpath(self.root / name))
        if not path.is_relative_to(self.root) or path == self.root:
            raise UserError(f"{name} is not a file of the command's folder")
        return path


def _as_a_command() -> None:
    """In the child: take an interrupt, which Ray's processes block, and be killed when the actor is."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PARENT_DEATH, signal.SIGKILL)


def _finish_file(partial: Path, path: Path, entry: Entry) -> None:
    if partial.stat().st_size != entry.size:
        partial.unlink()
        raise UserError(f"{path.name} changed while it was sent: give the command again")
    os.utime(partial, ns=(entry.time, entry.time))
    os.replace(partial, path)
    fsync_folder(path.parent)
