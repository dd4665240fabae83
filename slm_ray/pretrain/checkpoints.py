"""Checkpoints of a run: folders that appear whole or not at all, on any storage that Ray takes.

Every checkpoint is a folder ``step-00001234``. Its ``checkpoint.json`` lists its files with their sizes and digests; a
folder without it is no checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slm_ray.config.digest import sha256_file
from slm_ray.config.errors import UserError
from slm_ray.pretrain.storage import MANIFEST, open_storage
from slm_ray.records.files import write_json

_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint: its name inside the folder, its size and its SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint.

    Attributes:
        step: The number of optimiser steps before it.
        info: What was saved with it, JSON.
        files: Its files.
    """

    step: int
    info: dict[str, Any]
    files: tuple[CheckpointFile, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"step-{self.step:08d}"


class CheckpointFolder:
    """The checkpoints of one run. One process at a time writes them; others may read."""

    def __init__(self, location: str | Path) -> None:
        """Find the place; nothing is written.

        Args:
            location: A folder, or an address that pyarrow takes (``file://``, ``s3://``, ``gs://``, ``abfs://``,
                ``hdfs://``, with their options behind a ``?``).

        Raises:
            UserError: The address is of no known kind or cannot be reached.
        """
        self.location = str(location)
        self._storage = open_storage(location)
        self._is_prepared = False

    def save(self, step: int, write: Callable[[Path], None], info: dict[str, Any]) -> Checkpoint:
        """Save a checkpoint; one of the same step is replaced.

        The first time, the place is made, and what killed writers left there is removed.

        Args:
            step: Optimiser steps done.
            write: Fills an empty local folder. Whatever it raises goes on to the caller, and nothing appears.
            info: JSON kept in the manifest.

        Raises:
            UserError: The disk is full, or the storage cannot be reached or written. Earlier checkpoints are as they
                were.
        """
        saved: list[Checkpoint] = []
        if not self._is_prepared:
            self._storage.prepare()
            self._is_prepared = True

        def fill(folder: Path) -> None:
            write(folder)
            saved.append(Checkpoint(step, info, _describe_files(folder)))
            write_json(folder / MANIFEST, asdict(saved[0]))

        self._storage.publish(Checkpoint(step, {}, ()).name, fill)
        return saved[0]

    def all(self) -> list[Checkpoint]:
        """Every whole checkpoint, the earliest first.

        Raises:
            UserError: The storage cannot be reached.
        """
        return list(self._newest_first())[::-1]

    def latest(self) -> Checkpoint | None:
        """The whole checkpoint of the most steps; None if there is none.

        Raises:
            UserError: The storage cannot be reached.
        """
        return next(self._newest_first(), None)

    def _newest_first(self) -> Iterator[Checkpoint]:
        steps = {name: int(found[1]) for name in self._storage.folders() if (found := _NAME.fullmatch(name))}
        for name in sorted(steps, key=lambda one: -steps[one]):
            manifest = self._storage.read(name, MANIFEST)
            checkpoint = None if manifest is None else _parse(manifest, steps[name])
            if checkpoint is not None:
                yield checkpoint

    @contextmanager
    def open(self, checkpoint: Checkpoint) -> Iterator[Path]:
        """A local folder with the files of a checkpoint, every byte checked; remote ones are downloaded.

        Yields:
            The folder. Read it only; it may be gone after the block.

        Raises:
            UserError: A file is missing or not what was saved (it is named), or the storage cannot be reached.
        """
        with self._storage.fetch(checkpoint.name, [file.name for file in checkpoint.files]) as folder:
            for file in checkpoint.files:
                problem = _damage(folder / file.name, file)
                if problem:
                    raise UserError(
                        f"{checkpoint.name}/{file.name} in {self.location} {problem}: delete {checkpoint.name} and "
                        "resume from an earlier checkpoint"
                    )
            yield folder

    def prune(self, keep_last: int, best: int | None) -> None:
        """Delete all but the last checkpoints and the best one.

        Args:
            keep_last: How many of the last to keep, at least 1.
            best: The step of one to keep besides.

        Raises:
            UserError: The storage cannot be reached or written.
        """
        if keep_last < 1:
            raise UserError(f"at least 1 checkpoint must be kept, got {keep_last}")
        for checkpoint in self.all()[:-keep_last]:
            if checkpoint.step != best:
                self._storage.remove(checkpoint.name)


def _describe_files(folder: Path) -> tuple[CheckpointFile, ...]:
    return tuple(
        CheckpointFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def _parse(manifest: bytes, step: int) -> Checkpoint | None:
    """Read a manifest; None where it was cut short, is of another step, or names files outside of its folder."""
    try:
        value = json.loads(manifest)
        files = tuple(CheckpointFile(**entry) for entry in value["files"])
        paths = [PurePosixPath(file.name) for file in files]
        checkpoint = Checkpoint(value["step"], value["info"], files)
    except (ValueError, TypeError, KeyError):
        return None
    outside = any(path.is_absolute() or ".." in path.parts for path in paths)
    return None if outside or checkpoint.step != step else checkpoint


def _damage(path: Path, file: CheckpointFile) -> str | None:
    """What is wrong with a file, if anything."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != file.num_bytes:
        return f"has {path.stat().st_size} bytes instead of {file.num_bytes}"
    return None if sha256_file(path) == file.sha256 else "is damaged (its SHA-256 is not the one it was saved with)"
