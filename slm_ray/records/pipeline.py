"""The record of a pipeline: which stages were run, with which commands, and how long each took."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field

from slm_ray.records.base import Part, Record


class StageState(Part):
    """One stage of a pipeline."""

    key: str = ""  # The digest of all that its output depends on
    command: str = ""  # What ran it
    seconds: float = 0.0  # Its wall time
    output: str | None = None  # The digest of what it left; None while it has not finished
    finished_at: str | None = None  # UTC; None while it has not finished


class PipelineState(Record):
    """What a pipeline's folder says of its stages."""

    model_config = ConfigDict(extra="ignore")
    FILE: ClassVar[str] = "pipeline.json"
    command: str = ""
    teacher: str = ""
    stages: dict[str, StageState] = Field(default_factory=dict)
