"""Checkpoints of a training: folders that appear whole or not at all, in a local folder or on any fsspec storage.

Every checkpoint is a folder ``step-00001234``. Its ``checkpoint.json`` lists its files with their sizes and digests; a
folder without it is no checkpoint. On a remote storage it is uploaded last and deleted first.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from slm_ray.config.base import Config, Count, option
from slm_ray.config.digest import sha256_file
from slm_ray.config.errors import UserError
from slm_ray.records.base import Part
from slm_ray.records.files import explain_os_error, temporary_name, whole_folder, write_json
from slm_ray.runtime.storage import Place

MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,})")
_LEFT_BEHIND = re.compile(r"\.step-\d{8,}\.\d+-[0-9a-f]{8}\.tmp")  # what temporary_name calls a folder of ours


class CheckpointConfig(Config):
    """How often checkpoints are saved, how many are kept, and what the exported model is like."""

    checkpoint_every: Count | None = option(None, "tokens between checkpoints [default: a tenth of --tokens]", ge=1)
    keep_last: int = option(2, "newest checkpoints to keep, beside the best", ge=1)
    spike: float = option(3.0, "nats above the recent mean loss that stop a run; 0: never", ge=0)
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "type of the exported weights; auto: the student's own (checkpoints are fp32)"
    )


class CheckpointFile(Part):
    """One file of a checkpoint: its name inside the folder, its size and its SHA-256."""

    name: str
    num_bytes: int
    sha256: str


class Checkpoint(Part):
    """One whole checkpoint."""

    step: int  # The number of optimiser steps before it
    info: dict[str, Any]  # What was saved with it, JSON
    files: tuple[CheckpointFile, ...]  # Its files

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"step-{self.step:08d}"


class CheckpointFolder:
    """The checkpoints of one model. One process at a time writes them; others may read."""

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self._place = Place(location)
        self._is_prepared = False

    def save(self, step: int, write: Callable[[Path], None], info: dict[str, Any]) -> Checkpoint:
        """Save a checkpoint; one of the same step is replaced."""
        saved: list[Checkpoint] = []
        if not self._is_prepared:
            _remove_left_behind(self._place)
            self._is_prepared = True

        def fill(folder: Path) -> None:
            write(folder)
            saved.append(Checkpoint(step=step, info=info, files=_describe_files(folder)))
            write_json(folder / MANIFEST, saved[0].to_json())

        _publish(self._place, Checkpoint(step=step, info={}, files=()).name, fill)
        return saved[0]

    def all(self) -> list[Checkpoint]:
        """Every whole checkpoint, the earliest first."""
        return list(self._newest_first())[::-1]

    def latest(self) -> Checkpoint | None:
        """The whole checkpoint of the most steps; None if there is none."""
        return next(self._newest_first(), None)

    def _newest_first(self) -> Iterator[Checkpoint]:
        steps = {name: int(found[1]) for name in self._place.folders() if (found := _NAME.fullmatch(name))}
        for name in sorted(steps, key=lambda one: -steps[one]):
            manifest = self._place.read(f"{name}/{MANIFEST}")
            checkpoint = None if manifest is None else _parse(manifest, steps[name])
            if checkpoint is not None:
                yield checkpoint

    @contextmanager
    def open(self, checkpoint: Checkpoint) -> Iterator[Path]:
        """A local folder with the files of a checkpoint, every byte checked; remote ones are downloaded."""
        with _fetched(self._place, checkpoint) as folder:
            for file in checkpoint.files:
                problem = _damage(folder / file.name, file)
                if problem:
                    raise UserError(
                        f"{checkpoint.name}/{file.name} in {self.location} {problem}: delete {checkpoint.name} and "
                        "resume from an earlier checkpoint"
                    )
            yield folder

    def prune(self, keep_last: int, best: int | None) -> None:
        """Delete all but the last checkpoints and the best one."""
        for checkpoint in self.all()[:-keep_last]:
            if checkpoint.step != best:
                _remove(self._place, checkpoint.name)


def _publish(place: Place, name: str, fill: Callable[[Path], None]) -> None:
    """Have a local folder filled, its manifest too, and make it appear under a name, whole or not at all."""
    if place.is_local:
        with whole_folder(Path(place.path(name))) as temporary:
            fill(temporary)
        return
    with tempfile.TemporaryDirectory(prefix="slm_ray-checkpoint-") as scratch:
        local = Path(scratch) / name
        with whole_folder(local) as temporary:
            fill(temporary)
        files = sorted(path for path in local.rglob("*") if path.is_file())
        files.sort(key=lambda path: path == local / MANIFEST)  # it comes last
        _remove(place, name)
        for file in files:
            place.put(file, f"{name}/{file.relative_to(local).as_posix()}")


@contextmanager
def _fetched(place: Place, checkpoint: Checkpoint) -> Iterator[Path]:
    if place.is_local:
        yield Path(place.path(checkpoint.name))
        return
    there = place.sizes(checkpoint.name)
    with tempfile.TemporaryDirectory(prefix="slm_ray-checkpoint-") as scratch:
        for name in (file.name for file in checkpoint.files if f"{checkpoint.name}/{file.name}" in there):
            place.get(f"{checkpoint.name}/{name}", Path(scratch) / name)
        yield Path(scratch)


def _remove(place: Place, name: str) -> None:
    """Delete a folder if it is there; a reader sees it whole or not at all."""
    if not place.is_local:
        there = place.sizes(name)
        if f"{name}/{MANIFEST}" in there:
            place.remove(f"{name}/{MANIFEST}")
        if there:
            place.remove_folder(name)
        return
    folder = Path(place.path(name))
    doomed = temporary_name(folder)
    try:
        os.replace(folder, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise explain_os_error(error, f"deleting {folder}") from error


def _remove_left_behind(place: Place) -> None:
    """Make a local folder, and delete what killed writers left in it."""
    if not place.is_local:
        return
    root = Path(place.path())
    try:
        root.mkdir(parents=True, exist_ok=True)
        for path in root.iterdir():
            if _LEFT_BEHIND.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise explain_os_error(error, f"using {root} for checkpoints") from error


def _describe_files(folder: Path) -> tuple[CheckpointFile, ...]:
    return tuple(
        CheckpointFile(
            name=path.relative_to(folder).as_posix(), num_bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def _parse(manifest: bytes, step: int) -> Checkpoint | None:
    """Read a manifest; None where it was cut short, is of another step, or names files outside of its folder."""
    try:
        checkpoint = Checkpoint.model_validate_json(manifest)
    except ValueError:
        return None
    paths = [PurePosixPath(file.name) for file in checkpoint.files]
    outside = any(path.is_absolute() or ".." in path.parts for path in paths)
    return None if outside or checkpoint.step != step else checkpoint


def _damage(path: Path, file: CheckpointFile) -> str | None:
    """What is wrong with a file, if anything."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != file.num_bytes:
        return f"has {path.stat().st_size} bytes instead of {file.num_bytes}"
    return None if sha256_file(path) == file.sha256 else "is damaged (its SHA-256 is not the one it was saved with)"
