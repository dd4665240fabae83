"""Names for cards that leave this machine: without its folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def public_name(name: Any) -> str:
    """A hub id or a plain name as it is; of a path its last part."""
    text = str(name)
    return Path(text).name or text if text.startswith(("/", "~", ".")) else text
