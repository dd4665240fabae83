"""Commands in processes of their own, forked from one that has imported everything; and how they are struck."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "SLM_RAY_CHAOS"
_MAINS = {
    "slm_ray.search": "slm_ray.search.command", "slm_ray.logits": "slm_ray.distill.command",
    "slm_ray.pretrain": "slm_ray.pretrain.command", "slm_ray.evaluate": "slm_ray.evaluate.command",
}  # fmt: skip


def preload() -> None:
    """Import what every command imports, once: a fork of this process starts at once."""
    # A fork has none of its parent's threads, and would wait for those of a pool for ever: no pool is begun here.
    importlib.import_module("torch").set_num_threads(1)
    importlib.import_module("transformers")
    for module in (*_MAINS.values(), "slm_ray.search.run", "slm_ray.evaluate.run", "slm_ray.pretrain.run"):
        importlib.import_module(module)


class Command:
    """A command that runs in a fork, in a process group of its own, its output in a file."""

    def __init__(self, words: list[str], log: Path) -> None:
        """Start it.

        Args:
            words: ``-m``, the module, and its arguments.
            log: Where its output goes, behind what is there.
        """
        self.mark, self.status, self.log = uuid.uuid4().hex, None, log
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(words, log)

    def _become(self, words: list[str], log: Path) -> None:
        status = 1
        try:
            os.setsid()
            os.environ[MARK] = self.mark
            if any(word.startswith("127.0.0.1:") for word in words):
                # Ray takes a loopback address for the machine's own, on which such a cluster does not listen.
                importlib.import_module("ray._private.ray_constants").ENABLE_RAY_CLUSTER = False
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            from slm_ray.runtime.commands import run_command

            status = run_command(importlib.import_module(_MAINS[words[1]]).main, words[2:])
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def ended(self) -> bool:
        """Whether it has ended; ``status`` is then its exit status, negative for a signal."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        return wait_until(self.ended, seconds)

    def kill(self) -> None:
        """Kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait(30)

    def processes(self) -> dict[int, str]:
        """Everything that it started and that is still there, its own process left out."""
        return {pid: command for pid, command in marked(self.mark) if pid != self.pid}

    def clean_up(self, patience: float = 20.0) -> list[str]:
        """Wait for what it started to end, kill what does not, and say what that was."""
        wait_until(lambda: not self.processes(), patience)
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Without folders: what is kept on record names no place of this machine.
        return [" ".join(Path(word).name for word in command.split()[:3]) for command in left.values()]


def marked(mark: str) -> Iterator[tuple[int, str]]:
    """The processes that have a mark in the environment they were started with."""
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if mark.encode() in (place / "environ").read_bytes():
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command:
                    yield int(place.name), command


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Poll until something is so; whether it came in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
