"""What is to be measured of a model, one measurement after another, and where earlier records of it are found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.records.files import cache_folder, write_json
from slm_ray.records.measurement import MeasurementRecord, TextRecord, read_measurement

TEXT, TASK, GENERATION, EFFICIENCY = "text", "task", "generation", "efficiency"
CACHE_FOLDER = "evaluations"
# Raise one when what is measured under the same settings changes.
_VERSIONS = {TEXT: 3, TASK: 2, GENERATION: 2, EFFICIENCY: 2}
# Rates are a fact about one moment of one machine: they are kept in the evaluation's own folder only.
_NOT_SHARED = (EFFICIENCY,)


def file_name(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"


@dataclass(frozen=True)
class MeasurementSpec:
    """One measurement of one model.

    Attributes:
        kind: ``text``, ``task``, ``generation`` or ``efficiency``.
        name: The domain, or the name given to ``--tasks``; else the kind.
        settings: All that decides its result, the model's digest included.
        inputs: What the worker needs and ``settings`` stand for, such as the folder of the tokens.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The digest of the settings; equal ones have equal results."""
        return digest_json(dict(self.settings) | {"kind": self.kind, "version": _VERSIONS[self.kind]})

    @property
    def file(self) -> str:
        """Its file in the model's folder."""
        stem = self.kind if self.name == self.kind else f"{self.kind}-{file_name(self.name)}"
        return f"{stem}-{self.key[:8]}.json"

    @property
    def cached(self) -> Path:
        """Its file in the cache that all evaluations share."""
        return cache_folder() / CACHE_FOLDER / f"{self.key}.json"

    def header(self, model: str, params: int) -> dict[str, Any]:
        """The fields that every record begins with."""
        settings = dict(self.settings)
        return {"name": self.name, "key": self.key, "settings": settings, "model": model, "params": params}


@dataclass(frozen=True)
class RecordFolder:
    """The records of one model in an evaluation's folder.

    Attributes:
        path: The folder.
        model: The model's name in the evaluation.
        share: Look into the cache that all evaluations share.
    """

    path: Path
    model: str
    share: bool = True

    def find(self, spec: MeasurementSpec) -> MeasurementRecord | None:
        """The record of a measurement made before, here or in another evaluation; None where there is none."""
        here = self.path / spec.file
        for place in [here, *([spec.cached] if self.share and spec.kind not in _NOT_SHARED else [])]:
            record = _read(place)
            if record is None or record.key != spec.key:
                continue
            renamed = self._named(spec, record)
            if place != here or renamed != record:
                write_json(here, renamed.to_json())
            return renamed
        return None

    def _named(self, spec: MeasurementSpec, record: MeasurementRecord) -> MeasurementRecord:
        """A record as this evaluation names its model and its text."""
        changes: dict[str, Any] = {"name": spec.name, "model": self.model}
        if isinstance(record, TextRecord):
            changes["figures"] = record.figures.model_copy(update={"domain": spec.name})
        return record.model_copy(update=changes)

    def keep(self, spec: MeasurementSpec, record: MeasurementRecord) -> None:
        """Write a record, here and into the cache.

        Raises:
            UserError: The disk is full.
        """
        write_json(self.path / spec.file, record.to_json())
        if spec.kind not in _NOT_SHARED:
            write_json(spec.cached, record.to_json())


def _read(place: Path) -> MeasurementRecord | None:
    """A record that can be used; one that is damaged or of another version is measured again."""
    if not place.is_file():
        return None
    try:
        return read_measurement(place)
    except UserError:
        return None
