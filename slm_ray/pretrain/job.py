"""One model's training: its job, what its loop reports, and the files that the reports end in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from slm_ray.pretrain.config import PretrainConfig
from slm_ray.records.base import Part, Record, RecordFile, read_lines
from slm_ray.records.files import write_text
from slm_ray.records.training import (
    SpentFlops,
    TrainBegin,
    TrainEnd,
    TrainEvaluation,
    TrainFailure,
    TrainStatus,
    TrainStep,
)


class TrainJob(Part):
    """Everything a worker needs to know. A model's start is the first checkpoint in ``storage``."""

    name: str  # The model's name within the run, e.g. ``winner-0.random.seed1``.
    storage: str  # Where its checkpoints are: a folder or an address
    seed: int  # Seed of the order of sequences, and of dropout
    config: PretrainConfig  # The options, with this model's batch and rate
    total_steps: int  # Optimiser steps to train
    schedule_steps: int  # Steps that the learning-rate schedule spans
    shards: str  # Folder of the token shards
    sequences: int | None = None  # How many of their sequences are trained on; None for all
    held_out: str  # Folder of the held-out tokens
    teacher: str | None  # Folder of the teacher in the cache, for ``full`` distillation
    store: str | None  # Folder of the logit store
    # FLOPs per trained token, the model's own and the teacher's, and those of the store's whole capture
    flops: SpentFlops
    architecture: str  # Digest of its sizes

    @property
    def separate(self) -> bool:
        """Whether attention stays inside documents."""
        return self.config.data.documents == "separate"

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.config.step_tokens


class Saving(Part):
    """A checkpoint is about to be saved: everything reported before it has to be on the disk."""

    step: int


Event = TrainBegin | TrainStep | TrainEvaluation | Saving | TrainEnd | TrainFailure
Say = Callable[[Event], None]
Figures = TrainStep | TrainEvaluation
Watch = Callable[[str, TrainStatus, Sequence[Figures]], None]
"""Takes a model's name, where its training stands, and the steps and evaluations since the last call, in order."""


def drop_records_after(path: Path, cls: type[Record], step: int, *, inclusive: bool = False) -> None:
    """Cut a records file back to a checkpoint: what came after it will be done, and written, again."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [getattr(record, "step", 0) for record in read_lines(path, cls)]
    kept = [line for line, at in zip(lines, steps, strict=False) if at < step or (at == step and not inclusive)]
    write_text(path, b"".join(kept).decode())


class Recorder:
    """Writes one model's records. It lives in the driver's process, or in a Ray actor on the driver's machine."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.status = TrainStatus()
        self._news: list[Figures] = []
        self._steps: RecordFile[TrainStep] | None = None
        self._evals: RecordFile[TrainEvaluation] | None = None

    def say(self, event: Event) -> None:
        """Take what a training reports."""
        if isinstance(event, TrainBegin):
            self._begin(event)
        elif isinstance(event, TrainStep) and self._steps is not None:
            self._steps.append(event)
            self._news.append(event)
            self._update(step=event.step, loss=event.loss, rate=event.tokens_per_second)
        elif isinstance(event, TrainEvaluation) and self._evals is not None:
            self._evals.append(event)
            self._news.append(event)
            self._update(eval=event.loss)
        elif isinstance(event, TrainEnd):
            self._update(end=event)
        elif isinstance(event, TrainFailure):
            self._update(failure=event)

    def news(self) -> tuple[TrainStatus, list[Figures]]:
        """Where the training stands, and what was recorded since the last call."""
        news, self._news = self._news, []
        return self.status, news

    def _update(self, **changes: object) -> None:
        self.status = self.status.model_copy(update=changes)

    def _begin(self, event: TrainBegin) -> None:
        for file in (self._steps, self._evals):
            if file is not None:
                file.close()
        for cls in (TrainStep, TrainEvaluation):
            drop_records_after(self.folder / cls.FILE, cls, event.step, inclusive=event.step == 0)
        self._steps = RecordFile(self.folder / TrainStep.FILE)
        self._evals = RecordFile(self.folder / TrainEvaluation.FILE)
        self._update(begin=event, step=event.step)


class Recorders:
    """The recorders of all models, as one actor on the driver's machine: records reach its disk from any node."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._recorders = {name: Recorder(folder) for name, folder in folders.items()}

    def say(self, name: str, event: Event) -> None:
        """Take what one model's training reports."""
        self._recorders[name].say(event)

    def status(self, name: str) -> TrainStatus:
        """Where one model's training stands."""
        return self._recorders[name].status

    def news(self, name: str) -> tuple[TrainStatus, list[Figures]]:
        """Where one model's training stands, and what was recorded of it since the last call."""
        return self._recorders[name].news()
