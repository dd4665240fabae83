"""The record of a pipeline: which stages were run, with which commands, and how long each took."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, Field, ValidationError

from slm_ray.config.errors import UserError
from slm_ray.records.base import Part, Record
from slm_ray.records.files import read_json


class StageState(Part):
    """One stage of a pipeline.

    Attributes:
        key: The digest of all that its output depends on.
        command: What ran it.
        seconds: Its wall time.
        output: The digest of what it left; None while it has not finished.
        finished_at: UTC; None while it has not finished.
    """

    key: str = ""
    command: str = ""
    seconds: float = 0.0
    output: str | None = None
    finished_at: str | None = None


class PipelineState(Record):
    """What a pipeline's folder says of its stages."""

    model_config = ConfigDict(extra="ignore")
    FILE: ClassVar[str] = "pipeline.json"
    command: str = ""
    teacher: str = ""
    stages: dict[str, StageState] = Field(default_factory=dict)


def read_pipeline(folder: Path) -> PipelineState:
    """The state of a pipeline.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = folder / PipelineState.FILE
    try:
        return PipelineState.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(f"{path} is damaged ({place}: {first['msg']}): delete it and give the command again") from None
