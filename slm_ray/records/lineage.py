"""What slm_ray writes beside a model of where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from slm_ray.records.base import Part
from slm_ray.records.data import ExtendedVocabulary
from slm_ray.records.files import read_json
from slm_ray.records.training import TeacherSource, TrainingLineage

LINEAGE_FILE, CARD_FILE = "slm_ray.json", "README.md"


class Lineage(Part):
    """Where a model comes from, as far as cards say it; the file may say more.

    Attributes:
        teacher: Whom its sizes or weights were pruned from.
        trial: The candidate of the search that found it.
        vocabulary: How its vocabulary was extended.
        training: How it was trained.
    """

    model_config = ConfigDict(extra="ignore")
    teacher: TeacherSource | None = None
    trial: int | None = None
    space: Any = None
    vocabulary: ExtendedVocabulary | None = None
    training: TrainingLineage | None = None

    @property
    def licensed_by(self) -> TeacherSource | None:
        """Whose licence applies: the one it was pruned from, else the one it was distilled from."""
        return self.teacher or (self.training.distilled_from if self.training else None)

    @property
    def space_name(self) -> str | None:
        """The name of the search space it was found in."""
        named = self.space.get("name") if isinstance(self.space, dict) else self.space
        return str(named) if named else None


def read_lineage(model: Path | str) -> dict[str, Any]:
    """A model's lineage; empty for a model of somebody else's, and for a hub id.

    Args:
        model: Its folder, or how the user called it.

    Raises:
        UserError: The file is damaged.
    """
    path = Path(model).expanduser() / LINEAGE_FILE
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
