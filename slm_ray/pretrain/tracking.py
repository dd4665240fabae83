"""A model's records, as they are written, passed on to W&B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slm_ray.core.progress import Console
from slm_ray.core.trackers import NoTracker, Tracker, make_tracker
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.recorder import EVALS_FILE, STEPS_FILE

_STEP_METRICS = ("loss", "ce", "kd", "lr", "kd_weight", "grad_norm", "tokens_per_second", "memory_bytes", "cpu_percent")
_EVAL_METRICS = ("loss", "bits_per_byte")


class _Tail:
    """Reads the lines that a records file has gained."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, 0

    def read(self) -> list[dict[str, Any]]:
        """New whole records; a file that was cut back at a resume is read from there."""
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
        return [json.loads(line) for line in whole]


class ModelTracking:
    """One model's run in W&B, in the group of its command; what a resume trains again is not sent again."""

    def __init__(self, config: PretrainConfig, folder: Path, console: Console) -> None:
        """Start tracking, if it was asked for; records alone are kept otherwise.

        Args:
            config: The command's options.
            folder: The model's folder.
            console: Told once of what goes wrong.
        """
        self._tails = {"train": _Tail(folder / STEPS_FILE), "eval": _Tail(folder / EVALS_FILE)}
        self._sent = -1
        # The records are JSON lines already, so only W&B needs a tracker.
        self._tracker: Tracker = NoTracker()
        if config.tracker == "wandb":
            self._tracker = make_tracker(
                "wandb", folder, group=folder.parent.name, job_type="pretrain", tags=[config.distill, config.optimizer],
                config=config.to_json(), say=console.line,
            )  # fmt: skip

    def update(self) -> None:
        """Send what is new."""
        by_step: dict[int, dict[str, float]] = {}
        for kind, names in (("train", _STEP_METRICS), ("eval", _EVAL_METRICS)):
            for record in self._tails[kind].read():
                metrics = {f"{kind}/{name}": record[name] for name in names if record.get(name) is not None}
                by_step.setdefault(record["step"], {"tokens": record["tokens"]}).update(metrics)
        for step in sorted(step for step in by_step if step > self._sent):
            self._tracker.log(by_step[step], step=step)
            self._sent = step

    def finish(self) -> None:
        """Send the rest and close."""
        self.update()
        self._tracker.finish()
