"""Reads a run's folder as far as it goes: what is missing or damaged becomes a note, and the rest is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from slm_ray.config.errors import UserError
from slm_ray.records.base import Record, find_record, read_lines
from slm_ray.records.run import Environment, RunRecord

T = TypeVar("T")
R = TypeVar("R", bound=Record)


class RunReader:
    """Reads the records of one folder.

    Attributes:
        folder: The run's folder
        notes: What is missing or damaged, one sentence each
        run: What the run was started with; None where that is damaged
        environment: What it ran on
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is {'a file' if folder.exists() else 'missing'}: give the folder of a run")
        if not (folder / RunRecord.FILE).is_file():
            raise UserError(
                f"{folder} holds no run ({RunRecord.FILE} is missing): give the folder that a command wrote"
            )
        self.folder = folder
        self.notes: list[str] = []
        self.run = self.record(RunRecord)
        found = self.record(Environment)
        self.environment: Mapping[str, Any] = found.to_json() if found else {}

    @property
    def options(self) -> Mapping[str, Any]:
        """The run's options by name."""
        return self.run.options if self.run else {}

    @property
    def command(self) -> str | None:
        """The command as it was given."""
        return self.run.command or None if self.run else None

    def attempt(self, read: Callable[[], T]) -> T | None:
        """What ``read`` gives, or None with a note."""
        try:
            return read()
        except UserError as error:
            self.notes.append(str(error))
            return None

    def record(self, cls: type[R], folder: Path | None = None) -> R | None:
        """The record in the folder (or another one), or None where it is missing or damaged."""
        return self.attempt(lambda: find_record(folder or self.folder, cls))

    def lines(self, cls: type[R], folder: Path | None = None) -> tuple[R, ...]:
        """The records of a JSON-lines file, those that can be read."""
        path = (folder or self.folder) / cls.FILE
        try:
            return tuple(read_lines(path, cls))
        except UserError as error:
            self.notes.append(f"{error}; the lines that can be read are shown")
        found = []
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                found.append(cls.model_validate_json(line))
            except ValueError:
                continue
        return tuple(found)
