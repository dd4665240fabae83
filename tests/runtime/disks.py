"""Small file systems in memory that can be full or gone for a while."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SIZE = "96m"


@dataclass(frozen=True)
class Disk:
    """A mounted file system of 96 MB."""

    folder: Path

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room on it inside the block."""
        filler = self.folder / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
            with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(64))
            yield
        finally:
            filler.unlink(missing_ok=True)

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Have an empty file system that takes no writes in its place inside the block, as after a lost connection.

        Files that are open stay so; every name is gone.
        """
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(self.folder)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, kinds: tuple[str, ...]) -> Iterator[Disk | None]:
    """A disk for a run that is struck through it; None for others."""
    if not {"disk", "storage"} & set(kinds):
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
