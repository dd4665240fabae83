"""Where metrics go beside the records: nowhere, a JSON-lines file, or Weights & Biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from slm_ray.config.errors import UserError
from slm_ray.records.jsonl import RecordWriter
from slm_ray.runtime.wandb_tracker import WandbTracker

METRICS_FILE, PIPELINE_FILE = "metrics.jsonl", "pipeline.json"
Say = Callable[[str], None]


class Tracker(Protocol):
    """Takes metrics and tables of a run. A tracker that fails says so once and never stops the run.

    Attributes:
        wants_earlier: What an earlier process of this run recorded is to be logged as well; it may be known already.
    """

    wants_earlier: bool

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log scalars at a step; steps only grow."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

    def image(self, name: str, path: Path) -> None:
        """Log a picture file."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set what the run comes to."""

    def end(self) -> None:
        """Begin to close: several trackers that are to be finished then do it at once."""

    def finish(self) -> None:
        """Flush and close; takes a bounded time."""


class NoTracker:
    """Keeps nothing."""

    wants_earlier = False

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Do nothing."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing."""

    def image(self, name: str, path: Path) -> None:
        """Do nothing."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class JsonlTracker(NoTracker):
    """Appends every logged step to ``metrics.jsonl`` in the run folder; what is no number is null."""

    def __init__(self, folder: Path, say: Say) -> None:
        self._say, path = say, folder / METRICS_FILE
        self.wants_earlier = not path.exists() or not path.stat().st_size
        self._writer: RecordWriter | None = None
        self._try(lambda: setattr(self, "_writer", RecordWriter(path)))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except UserError as error:
            self._writer = None
            self._say(f"metrics are not kept any more ({error}); the run goes on without them")

    def _append(self, record: Mapping[str, Any]) -> None:
        writer = self._writer
        if writer is not None:
            self._try(lambda: writer.append({name: _finite(value) for name, value in record.items()}))

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append one line."""
        self._append({"step": step, **metrics})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Append one line without a step."""
        self._append(values)

    def finish(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def group_of(run: Path) -> str:
    """What the runs of one folder are grouped by: the pipeline it is a stage of, else its own name."""
    run = run.resolve()
    return run.parent.name if (run.parent / PIPELINE_FILE).is_file() else run.name


def make_tracker(
    kind: str, folder: Path, *, group: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], say: Say
) -> Tracker:
    """The tracker of a name: ``none``, ``jsonl`` or ``wandb``."""
    if kind == "wandb":
        return WandbTracker(folder, group, job_type, tags, config, say)
    return JsonlTracker(folder, say) if kind == "jsonl" else NoTracker()
