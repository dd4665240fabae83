"""Reads a run's folder as far as it goes: what is missing or damaged becomes a note, and the rest is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slm_ray.config.errors import UserError
from slm_ray.records.base import Record, find_record, read_lines
from slm_ray.records.run import Environment, RunRecord
from slm_ray.report.content import Block, Code, Fold, Section, Table, Text
from slm_ray.report.text import MISSING

T = TypeVar("T")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class RunRecords:
    """What every run's folder says."""

    folder: Path
    notes: tuple[str, ...]  # what is missing or damaged, one sentence each
    options: Mapping[str, Any]  # the resolved options
    environment: Mapping[str, Any]  # what it ran on
    command: str | None  # as it was given

    def closing_sections(self, steps: Sequence[tuple[str, str]] = ()) -> list[Section]:
        """How to make the run again, what can be done next (titles and code), and what it ran on."""
        rows = []
        for name, value in self.environment.items():
            if name != "version":
                parts = value.items() if isinstance(value, Mapping) else ()
                shown = ", ".join(f"{key} {inner}" for key, inner in parts) or value
                rows.append((name.replace("_", " "), MISSING if shown is None else str(shown)))
        made: Block = Code(self.command, "sh") if self.command else Text("The command was not recorded.")
        ran_on = Table("Environment", ("what", "which"), tuple(rows)) if rows else Text("Not recorded.")
        given = Code(json.dumps(dict(self.options), indent=2, ensure_ascii=False, default=str), "json")
        return [
            Section("How to reproduce", [made, *(Code(text, title=title) for title, text in steps)]),
            Section("What it ran on", [Fold("Environment", ran_on), Fold("Config", given)]),
        ]


class RunReader:
    """Reads the records of one folder."""

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
    def common(self) -> dict[str, Any]:
        """The fields of :class:`RunRecords`, once everything is read."""
        run = self.run
        return {
            "folder": self.folder, "notes": tuple(self.notes), "options": run.options if run else {},
            "environment": self.environment, "command": (run.command or None) if run else None,
        }  # fmt: skip

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
        for line in path.read_bytes().splitlines():
            try:
                found.append(cls.model_validate_json(line))
            except ValueError:
                continue
        return tuple(found)
