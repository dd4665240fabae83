"""A model's records passed on to W&B as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slm_ray.config.base import flatten
from slm_ray.config.digest import digest_json
from slm_ray.config.units import perplexity_of_loss
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.records import metric_names as names
from slm_ray.records.base import Record, find_record, read_lines, read_record
from slm_ray.records.run import RunRecord
from slm_ray.records.training import TrainedModel, TrainEvaluation, TrainStep
from slm_ray.report.tracked import send_results
from slm_ray.runtime.progress import Console
from slm_ray.runtime.trackers import NoTracker, Tracker, group_of, make_tracker


class ModelTracking:
    """One model's run in W&B, in the group of its command; steps that a resume trains again are not sent again."""

    def __init__(self, config: PretrainConfig, folder: Path, console: Console) -> None:
        """Start tracking, where W&B is the tracker; records alone are kept otherwise."""
        self._sent = -1  # the last step sent, which is sent once more with its evaluation
        self._last: TrainEvaluation | None = None
        self._params: float | None = None
        # The records are JSON lines already, so only W&B needs a tracker.
        self._tracker: Tracker = NoTracker()
        if config.run.tracker != "wandb":
            return
        model = read_record(folder, TrainedModel)
        self._tracker = make_tracker(
            "wandb", folder, group=group_of(folder.parent), job_type="pretrain",
            tags=["pretrain", model.start, f"distill-{config.kind}", config.optimizer.optimizer],
            config=_model_config(config, folder, model), say=console.line,
        )  # fmt: skip
        self._params = model.params
        steps = read_lines(folder / TrainStep.FILE, TrainStep)
        evals = read_lines(folder / TrainEvaluation.FILE, TrainEvaluation)
        if self._tracker.wants_earlier:
            self.send(sorted([*steps, *evals], key=lambda record: record.step))
        elif steps:
            self._sent = 1 + steps[-1].step

    def send(self, records: Iterable[TrainStep | TrainEvaluation]) -> None:
        """Send records, an evaluation behind its step."""
        for record in records:
            row = {names.TOKENS: record.tokens, names.FLOPS: record.flops.total}
            if isinstance(record, TrainStep):
                row |= _figures(record, names.TRAIN)
            else:
                # Seconds are those of all steps so far; a step's are its own.
                row |= _figures(record, names.EVAL) | {names.SECONDS: record.seconds}
                self._last = record
            if record.step >= self._sent:
                self._tracker.log(row, step=record.step)
                self._sent = record.step

    def finish(self) -> None:
        """Send what the training came to, and close."""
        if self._last:
            self._tracker.summary(_summary(self._last, self._params))
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
