"""What there is to measure of a model, piece by piece, and where what was measured before is found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.records.files import cache_folder, read_json, write_json

TEXT, TASK, GENERATION, EFFICIENCY = "text", "task", "generation", "efficiency"
CACHE_FOLDER = "evaluations"
# How long things take is a fact about one moment of one machine: it is kept in the run's own folder only.
_NOT_SHARED = (EFFICIENCY,)


def file_name(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"


@dataclass(frozen=True)
class Part:
    """One measurement of one model.

    Attributes:
        kind: ``text``, ``task``, ``generation`` or ``efficiency``.
        name: The domain or the task; else the kind.
        settings: All that decides its result, the model's digest among it.
        inputs: What the worker needs and ``settings`` stand for, such as the folder of the tokens.
    """

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The digest of the settings; equal ones have equal results."""
        return digest_json(dict(self.settings) | {"kind": self.kind})

    @property
    def file(self) -> str:
        """Its file in the model's folder."""
        stem = self.kind if self.name == self.kind else f"{self.kind}-{file_name(self.name)}"
        return f"{stem}-{self.key[:8]}.json"


@dataclass(frozen=True)
class RecordFolder:
    """The records of one model in an evaluation's folder.

    Attributes:
        path: The folder.
        share: Look into the cache that all evaluations share.
    """

    path: Path
    share: bool = True

    def find(self, part: Part) -> dict[str, Any] | None:
        """The record of a part measured before, here or in another evaluation; None where there is none."""
        places = [self.path / part.file]
        if self.share and part.kind not in _NOT_SHARED:
            places.append(cache_folder() / CACHE_FOLDER / f"{part.key}.json")
        for place in places:
            record = read_json(place) if place.is_file() else None
            if isinstance(record, dict) and record.get("key") == part.key:
                record["name"] = part.name  # another evaluation may have called the same text by another name
                if place != places[0]:
                    write_json(places[0], record)
                return record
        return None

    def keep(self, part: Part, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write a record, here and into the cache, and give it as it is read back.

        Raises:
            UserError: The disk is full.
        """
        whole = {"kind": part.kind, "name": part.name} | dict(record)
        whole |= {"key": part.key, "settings_digested": dict(part.settings)}
        write_json(self.path / part.file, whole)
        if part.kind not in _NOT_SHARED:
            write_json(cache_folder() / CACHE_FOLDER / f"{part.key}.json", whole)
        return whole
