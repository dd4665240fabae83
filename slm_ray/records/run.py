"""The record every run folder begins with."""

from __future__ import annotations

from typing import Any, ClassVar

from slm_ray.records.base import Record


class RunRecord(Record):
    """What a run was started with.

    Attributes:
        stage: The stage's name, such as ``search``.
        command: The command as it was given, quoted for a shell.
        options: Every option by name, resolved.
    """

    FILE: ClassVar[str] = "config.json"
    stage: str
    command: str
    options: dict[str, Any]
