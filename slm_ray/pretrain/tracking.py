"""A model's records, as they are written, passed on to W&B."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.units import perplexity_of_loss
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.recorder import EVALS_FILE, STEPS_FILE
from slm_ray.records import metric_names as names
from slm_ray.records.files import read_json
from slm_ray.report.tracked import send_results
from slm_ray.runtime.progress import Console
from slm_ray.runtime.runfolder import CONFIG_FILE
from slm_ray.runtime.trackers import NoTracker, Tracker, group_of, make_tracker

MODEL_FILE = "model.json"


class _Tail:
    """Reads the lines that a records file has gained."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, 0

    def read(self) -> list[dict[str, Any]]:
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
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records


class ModelTracking:
    """One model's run in W&B, in the group of its command; what a resume trains again is not sent again."""

    def __init__(self, config: PretrainConfig, folder: Path, console: Console) -> None:
        """Start tracking, if it was asked for; records alone are kept otherwise.

        Args:
            config: The command's options.
            folder: The model's folder.
            console: Told once of what goes wrong.
        """
        # Steps are read first: an evaluation is written after its own step and before the next one.
        self._tails = ((_Tail(folder / STEPS_FILE), names.TRAIN), (_Tail(folder / EVALS_FILE), names.EVAL))
        self._rows: dict[int, dict[str, float]] = {}  # not sent yet
        self._sent = self._trained = -1  # the last step sent, which may be sent once more with its evaluation
        self._result: Mapping[str, Any] = {}
        self._params: float | None = None
        # The records are JSON lines already, so only W&B needs a tracker.
        self._tracker: Tracker = NoTracker()
        if config.tracker == "wandb":
            self._tracker = make_tracker(
                "wandb", folder, group=group_of(folder.parent), job_type="pretrain", tags=_tags(config, folder),
                config=_model_config(config, folder), say=console.line,
            )  # fmt: skip
            self._params = _model(folder).get("params")
            if not self._tracker.wants_earlier:  # an earlier process sent what stands in the records now
                self._sent = 1 + max((record["step"] for record in _Tail(folder / STEPS_FILE).read()), default=-2)

    def update(self) -> None:
        """Send what is new, an evaluation not before its step: a tracker's steps only grow."""
        for tail, keys in self._tails:
            for record in tail.read():
                row = self._rows.setdefault(record["step"], _place(record))
                row |= {keys[name]: record[name] for name in keys if record.get(name) is not None}
                if keys is names.EVAL:
                    row[names.SECONDS] = record["seconds"]  # of all steps so far; a step's are its own
                    self._result = record
                else:
                    self._trained = record["step"]
        self._send(self._trained)

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
        if self._result:
            self._tracker.summary(_summary(self._result, self._params))
        self._tracker.end()

    def finish(self) -> None:
        """Close."""
        self._tracker.finish()


def track_results(config: PretrainConfig, folder: Path, console: Console) -> None:
    """Send what a run's models come to beside one another, as a run of its own in the same group."""
    if config.tracker != "wandb":
        return  # it stands in the records
    tracker = make_tracker(
        "wandb", folder, group=group_of(folder), job_type="comparison", say=console.line,
        tags=["comparison", f"distill-{config.distill}"], config=_run_config(config, folder),
    )  # fmt: skip
    send_results(tracker, folder)
    tracker.finish()


def _summary(record: Mapping[str, Any], params: float | None) -> dict[str, Any]:
    """What a model's last evaluation says."""
    loss = record["loss"]
    found = {
        names.RESULT_PARAMS: params, names.RESULT_LOSS: loss, names.RESULT_BITS: record.get("bits_per_byte"),
        names.RESULT_PERPLEXITY: perplexity_of_loss(loss),
        names.RESULT_SECONDS: record["seconds"], names.RESULT_TOKENS: record["tokens"],
        names.RESULT_FLOPS: _place(record)[names.FLOPS],
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _place(record: Mapping[str, Any]) -> dict[str, float]:
    """What a record's figures are drawn against."""
    flops = record.get("flops") or {}
    return {names.TOKENS: record["tokens"], names.FLOPS: float(sum(flops.values()))}


def _model(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / MODEL_FILE))


def _tags(config: PretrainConfig, folder: Path) -> list[str]:
    return ["pretrain", str(_model(folder).get("start")), f"distill-{config.distill}", config.optimizer]


def _run_config(config: PretrainConfig, run: Path) -> dict[str, Any]:
    """The command's options and its command line."""
    written = run / CONFIG_FILE
    command = read_json(written).get("command") if written.is_file() else None
    return config.to_json() | {"command": command, "run_folder": run.resolve().name}


def _model_config(config: PretrainConfig, folder: Path) -> dict[str, Any]:
    """The command's options with what this model of it is."""
    described = _model(folder)
    kept = {name: described.get(name) for name in ("start", "params", "source", "search_flops")}
    architecture = digest_json(described.get("architecture"))
    return _run_config(config, folder.parent) | kept | {"architecture": architecture}
