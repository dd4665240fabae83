"""What slm_ray writes beside a model of where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm_ray.records.files import read_json

LINEAGE_FILE, CARD_FILE = "slm_ray.json", "README.md"


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
