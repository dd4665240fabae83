"""What a model's training leaves in its folder: a line per step, a line per evaluation, and where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm_ray.records.files import write_text
from slm_ray.records.jsonl import RecordWriter, read_records

STEPS_FILE = "steps.jsonl"
EVALS_FILE = "evals.jsonl"


def drop_records_after(path: Path, step: int, *, inclusive: bool = False) -> None:
    """Cut a records file back to a checkpoint: what came after it will be done, and written, again.

    Args:
        path: The file.
        step: The checkpoint's step.
        inclusive: Drop the records of that step too.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    records = read_records(path)
    kept = [
        line for line, record in zip(lines, records, strict=False)
        if record["step"] < step or (record["step"] == step and not inclusive)
    ]  # fmt: skip
    write_text(path, b"".join(kept).decode())


class Recorder:
    """Writes one model's records. It lives in the driver's process, or as a Ray actor on the driver's machine."""

    def __init__(self, folder: str) -> None:
        """Write into a folder."""
        self.folder = Path(folder)
        self._files: dict[str, RecordWriter] = {}
        self._status: dict[str, Any] = {"step": 0, "failure": None, "end": None, "begin": None}

    def say(self, kind: str, record: dict[str, Any]) -> None:
        """Take one record: ``begin``, ``step``, ``eval``, ``checkpoint``, ``end`` or ``failure``."""
        if kind == "begin":
            self._begin(record)
        elif kind == "step":
            self._files[STEPS_FILE].append(record)
            self._status |= {"step": record["step"], "loss": record["loss"], "rate": record["tokens_per_second"]}
        elif kind == "eval":
            self._files[EVALS_FILE].append(record)
            self._status["eval"] = record["loss"]
        elif kind in ("end", "failure"):
            self._status[kind] = record

    def _begin(self, record: dict[str, Any]) -> None:
        for file in self._files.values():
            file.close()
        for name in (STEPS_FILE, EVALS_FILE):
            drop_records_after(self.folder / name, record["step"], inclusive=record["step"] == 0)
            self._files[name] = RecordWriter(self.folder / name)
        self._status |= {"begin": record, "step": record["step"]}

    def status(self) -> dict[str, Any]:
        """Where the training stands."""
        return dict(self._status)
