"""What slm_ray writes beside a model of where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from slm_ray.config.version import VERSION
from slm_ray.records.base import Record, find_record
from slm_ray.records.data import ExtendedVocabulary
from slm_ray.records.search import Reconstruction, SearchInputsRecord
from slm_ray.records.training import TeacherSource, TrainingLineage

CARD_FILE = "README.md"


class Lineage(Record):
    """Where a model comes from; a field is None where that part of a life was not lived."""

    FILE: ClassVar[str] = "slm_ray.json"
    slm_ray: str = VERSION  # The version that wrote it
    teacher: TeacherSource | None = None  # Whom its sizes or weights were pruned from
    trial: int | None = None  # The candidate of the search that found it
    genes: str | None = None  # Its genes in the search's space
    space: dict[str, Any] | None = None  # The search space, as its file says it
    spec: dict[str, Any] | None = None  # The units of the teacher that it keeps, as ``SubnetSpec.to_json`` has it
    inputs: SearchInputsRecord | None = None  # Digests of what the search read
    command: str | None = None  # The search's command
    reconstruction: Reconstruction | None = None  # How its weights were fitted to the teacher's layers
    search_flops: float | None = None  # What the search cost
    vocabulary: ExtendedVocabulary | None = None  # How its vocabulary was extended
    training: TrainingLineage | None = None  # How it was trained

    @property
    def licensed_by(self) -> TeacherSource | None:
        """Whose licence applies: the one it was pruned from, else the one it was distilled from."""
        return self.teacher or (self.training.distilled_from if self.training else None)

    @property
    def teacher_name(self) -> str | None:
        """The name of the teacher that it was pruned from."""
        return self.teacher.name if self.teacher else None

    @property
    def space_name(self) -> str | None:
        """The name of the search space it was found in."""
        return str(self.space["name"]) if self.space and self.space.get("name") else None


def find_lineage(model: Path | str) -> Lineage | None:
    """A model's lineage; None for a model of somebody else's, and for a hub id."""
    return find_record(Path(model).expanduser(), Lineage)


def pruned_from(model: Path | str) -> str | None:
    """The name of the teacher that a model was pruned from, as its lineage has it."""
    found = find_lineage(model)
    return found.teacher_name if found else None
