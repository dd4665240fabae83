"""A model's records, as they are written, passed on to W&B."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from slm_ray.config.base import flatten
from slm_ray.config.digest import digest_json
from slm_ray.config.units import perplexity_of_loss
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.records import metric_names as names
from slm_ray.records.base import Record, find_record, read_record
from slm_ray.records.run import RunRecord
from slm_ray.records.training import TrainedModel, TrainEvaluation, TrainStep
from slm_ray.report.tracked import send_results
from slm_ray.runtime.progress import Console
from slm_ray.runtime.trackers import NoTracker, Tracker, group_of, make_tracker

R = TypeVar("R", bound=Record)


class _Tail(Generic[R]):
    """Reads the lines that a records file has gained."""

    def __init__(self, path: Path, cls: type[R]) -> None:
        self.path, self._cls, self._offset = path, cls, 0

    def read(self) -> list[R]:
        """New whole records; a file that was cut back at a resume is read from there. Half a line is left out."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return []
        self._offset = min(self._offset, size)
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._offset += sum(map(len, whole))
        records = []
        for line in whole:
            try:
                records.append(self._cls.model_validate_json(line))
            except ValueError:  # the rest of a line that was cut back
                continue
        return records


class ModelTracking:
    """One model's run in W&B, in the group of its command; steps that a resume trains again are not sent again."""

    def __init__(self, config: PretrainConfig, folder: Path, console: Console) -> None:
        """Start tracking, where W&B is the tracker; records alone are kept otherwise.

        Args:
            config: The model's options.
            folder: The model's folder.
            console: Told once of what goes wrong.
        """
        # Steps are read first: an evaluation is written after its own step and before the next one.
        self._steps = _Tail(folder / TrainStep.FILE, TrainStep)
        self._evals = _Tail(folder / TrainEvaluation.FILE, TrainEvaluation)
        self._rows: dict[int, dict[str, float]] = {}  # not sent yet
        self._sent = self._trained = -1  # the last step sent, which may be sent once more with its evaluation
        self._last: TrainEvaluation | None = None
        self._params: float | None = None
        # The records are JSON lines already, so only W&B needs a tracker.
        self._tracker: Tracker = NoTracker()
        if config.run.tracker == "wandb":
            model = read_record(folder, TrainedModel)
            self._tracker = make_tracker(
                "wandb", folder, group=group_of(folder.parent), job_type="pretrain",
                tags=["pretrain", model.start, f"distill-{config.kind}", config.optimizer.optimizer],
                config=_model_config(config, folder, model), say=console.line,
            )  # fmt: skip
            self._params = model.params
            if not self._tracker.wants_earlier:  # an earlier process sent the present records
                earlier = _Tail(folder / TrainStep.FILE, TrainStep).read()
                self._sent = 1 + max((record.step for record in earlier), default=-2)

    def update(self) -> None:
        """Send new records, an evaluation not before its step: a tracker's steps only grow."""
        for step in self._steps.read():
            self._row(step).update(_figures(step, names.TRAIN))
            self._trained = step.step
        for evaluation in self._evals.read():
            row = self._row(evaluation)
            row.update(_figures(evaluation, names.EVAL))
            row[names.SECONDS] = evaluation.seconds  # of all steps so far; a step's are its own
            self._last = evaluation
        self._send(self._trained)

    def _row(self, record: TrainStep | TrainEvaluation) -> dict[str, float]:
        return self._rows.setdefault(record.step, {names.TOKENS: record.tokens, names.FLOPS: record.flops.total})

    def _send(self, last: int) -> None:
        for step in sorted(step for step in self._rows if step <= last):
            row = self._rows.pop(step)
            if step >= self._sent:
                self._tracker.log(row, step=step)
                self._sent = step

    def end(self) -> None:
        """Send the rest and begin to close."""
        self.update()
        self._send(max(self._rows, default=-1))
        if self._last:
            self._tracker.summary(_summary(self._last, self._params))
        self._tracker.end()

    def finish(self) -> None:
        """Close."""
        self._tracker.finish()


def track_results(config: PretrainConfig, folder: Path, console: Console) -> None:
    """Send the comparison of a run's models, as a run of its own in the same group."""
    if config.run.tracker != "wandb":
        return  # it is in the records
    tracker = make_tracker(
        "wandb", folder, group=group_of(folder), job_type="comparison", say=console.line,
        tags=["comparison", f"distill-{config.kind}"], config=_run_config(config, folder),
    )  # fmt: skip
    send_results(tracker, folder)
    tracker.finish()


def _figures(record: Record, keys: Mapping[str, str]) -> dict[str, float]:
    return {keys[name]: value for name in keys if (value := getattr(record, name, None)) is not None}


def _summary(record: TrainEvaluation, params: float | None) -> dict[str, Any]:
    """The figures of a model's last evaluation."""
    found = {
        names.RESULT_PARAMS: params, names.RESULT_LOSS: record.loss, names.RESULT_BITS: record.bits_per_byte,
        names.RESULT_PERPLEXITY: perplexity_of_loss(record.loss), names.RESULT_SECONDS: record.seconds,
        names.RESULT_TOKENS: record.tokens, names.RESULT_FLOPS: record.flops.total,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _run_config(config: PretrainConfig, run: Path) -> dict[str, Any]:
    """The command's options and its command line."""
    record = find_record(run, RunRecord)
    return flatten(config) | {"command": record and record.command, "run_folder": run.resolve().name}


def _model_config(config: PretrainConfig, folder: Path, model: TrainedModel) -> dict[str, Any]:
    """The command's options with what this model of it is."""
    kept = {name: getattr(model, name) for name in ("start", "params", "source", "search_flops")}
    architecture = digest_json(model.architecture.to_json() if model.architecture else None)
    return _run_config(config, folder.parent) | kept | {"architecture": architecture}
