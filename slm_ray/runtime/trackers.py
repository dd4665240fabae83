"""Where metrics go beside the records: nowhere, a JSON-lines file, or Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from slm_ray.config.errors import UserError
from slm_ray.records.base import Record, RecordFile

PIPELINE_FILE = "pipeline.json"
Say = Callable[[str], None]


class MetricRow(Record):
    """Metrics by name, at a step; without one, what the run comes to. A value that is no number is null."""

    FILE: ClassVar[str] = "metrics.jsonl"
    model_config = ConfigDict(extra="allow")
    step: int | None = None


class Tracker:
    """Takes metrics and tables of a run, and keeps nothing: the base of those that do.

    A tracker that fails says so once and never stops the run.

    Attributes:
        wants_earlier: What an earlier process of this run recorded is to be logged as well; it may be known already.
    """

    wants_earlier = False

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


NoTracker = Tracker


class JsonlTracker(Tracker):
    """Appends every logged step to ``metrics.jsonl`` in the run folder."""

    def __init__(self, folder: Path, say: Say) -> None:
        self._say, path = say, folder / MetricRow.FILE
        self.wants_earlier = not path.exists() or not path.stat().st_size
        self._file: RecordFile[MetricRow] | None = None
        try:
            self._file = RecordFile(path)
        except UserError as error:
            self._give_up(error)

    def _give_up(self, error: UserError) -> None:
        self._file = None
        self._say(f"metrics are not kept any more ({error}); the run goes on without them")

    def _append(self, step: int | None, values: Mapping[str, Any]) -> None:
        if self._file is not None:
            try:
                self._file.append(MetricRow(step=step, **values))
            except UserError as error:
                self._give_up(error)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append one line."""
        self._append(step, metrics)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Append one line without a step."""
        self._append(None, values)

    def finish(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def group_of(run: Path) -> str:
    """What the runs of one folder are grouped by: the pipeline it is a stage of, else its own name."""
    run = run.resolve()
    return run.parent.name if (run.parent / PIPELINE_FILE).is_file() else run.name


def make_tracker(
    kind: str, folder: Path, *, group: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], say: Say
) -> Tracker:
    """The tracker of a name: ``none``, ``jsonl`` or ``wandb``."""
    if kind == "wandb":
        from slm_ray.runtime.wandb_tracker import WandbTracker

        return WandbTracker(folder, group, job_type, tags, config, say)
    return JsonlTracker(folder, say) if kind == "jsonl" else NoTracker()
