"""The files of a pretraining run, read into types. What is missing or damaged is said, and the rest is read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.report.matching import Curve, make_curve
from slm_ray.report.records import mapping, number, read_lines, read_part
from slm_ray.runtime.runfolder import CONFIG_FILE, ENVIRONMENT_FILE

MODEL_FILE, RESULT_FILE, STATUS_FILE, GROWTH_FILE = "model.json", "result.json", "status.json", "growth.json"
STEPS_FILE, EVALS_FILE = "steps.jsonl", "evals.jsonl"
DONE, FAILED, RUNNING = "done", "failed", "unfinished"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the held-out text.

    Attributes:
        tokens: Tokens trained on before it.
        loss: Nats per token.
        stderr: Its standard error.
        bits_per_byte: The same loss per byte of text.
        own_flops: FLOPs of training so far, without the teacher's.
        teacher_flops: The teacher's.
        seconds: Time in steps so far.
    """

    tokens: int
    loss: float
    stderr: float | None
    bits_per_byte: float | None
    own_flops: float
    teacher_flops: float
    seconds: float


@dataclass(frozen=True)
class TrainedModel:
    """One model of a run.

    Attributes:
        name: Its name, ``winner-0.student``.
        start: Where its weights came from.
        params: Its parameters.
        state: ``done``, ``failed`` or ``unfinished``.
        error: Why it failed.
        evaluations: Those whose loss is a number, in order.
        search_flops: What the search that found it cost; None where that is not known.
        capture_flops: What the capture of its logit store cost.
        folder: Of the exported model, relative to the run; None where there is none yet.
        tokens_per_second: Median over its steps.
        memory_bytes: The most its worker held.
        cpu_percent: Median over its steps; 100 is one core.
        mfu: Model FLOPs utilisation, where the device's peak is known.
        joules: Energy, where it was measured.
    """

    name: str
    start: str
    params: float | None
    state: str
    error: str | None
    evaluations: tuple[Evaluation, ...]
    search_flops: float | None
    capture_flops: float
    folder: str | None
    tokens_per_second: float | None = None
    memory_bytes: float | None = None
    cpu_percent: float | None = None
    mfu: float | None = None
    joules: float | None = None

    def all_flops(self, at: Evaluation) -> float:
        """FLOPs up to an evaluation: its own, the teacher's, the search's where they are known, and the capture's."""
        return at.own_flops + at.teacher_flops + (self.search_flops or 0.0) + self.capture_flops

    @property
    def curve(self) -> Curve | None:
        """Its evaluations for comparisons; None where there are fewer than two."""
        evaluations = [(e.tokens, e.own_flops, e.teacher_flops, e.loss) for e in self.evaluations]
        return make_curve(self.name, evaluations, self.search_flops, self.capture_flops)


@dataclass(frozen=True)
class Level:
    """A loss to hold the curves against: the teacher's, or the one that growth has to reach."""

    name: str
    loss: float


@dataclass(frozen=True)
class TrainingRecords:
    """Everything a pretraining run's folder says.

    Attributes:
        folder: The run folder.
        finished: Every model is done.
        notes: What is missing or damaged, one sentence each.
        config: The resolved options.
        environment: What it ran on.
        command: The command line.
        models: In the order of the result, else by name.
        level: The teacher's loss on the same text, where it is recorded.
    """

    folder: Path
    finished: bool
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str | None
    models: tuple[TrainedModel, ...]
    level: Level | None

    @property
    def curves(self) -> list[Curve]:
        """Of all models that have one."""
        return [curve for model in self.models if (curve := model.curve)]

    @property
    def best(self) -> TrainedModel | None:
        """The model that the run is about: a trained student before others, then the one of least loss."""
        measured = [model for model in self.models if model.evaluations]
        return min(measured, key=lambda m: (m.start != "student", m.evaluations[-1].loss), default=None)


def is_training_run(config: Mapping[str, Any]) -> bool:
    """Whether a run's resolved options are those of pretraining."""
    return "student" in config and "distill" in config


def _evaluation(record: Mapping[str, Any]) -> Evaluation | None:
    tokens, loss, flops = number(record.get("tokens")), number(record.get("loss")), mapping(record.get("flops"))
    if tokens is None or loss is None:
        return None
    return Evaluation(
        int(tokens), loss, number(record.get("stderr")), number(record.get("bits_per_byte")),
        number(flops.get("own")) or 0.0, number(flops.get("teacher")) or 0.0, number(record.get("seconds")) or 0.0,
    )  # fmt: skip


def _median(steps: list[Mapping[str, Any]], name: str) -> float | None:
    values = [value for step in steps if (value := number(step.get(name))) is not None]
    return statistics.median(values) if values else None


def _model(folder: Path, notes: list[str]) -> TrainedModel:
    """One model from its own folder, finished or not."""
    described = read_part(folder / MODEL_FILE, notes) or {}
    result, status = read_part(folder / RESULT_FILE, notes), read_part(folder / STATUS_FILE, notes) or {}
    steps, evals = read_lines(folder / STEPS_FILE, notes), read_lines(folder / EVALS_FILE, notes)
    failure = mapping(status.get("failure")).get("message")
    state = DONE if result is not None else FAILED if failure else RUNNING
    given = result or {}
    last_flops = mapping(evals[-1].get("flops")) if evals else {}
    return TrainedModel(
        name=folder.name,
        start=str(described.get("start") or given.get("start") or "student"),
        params=number(described.get("params")),
        state=state,
        error=str(failure) if failure and state == FAILED else None,
        evaluations=tuple(found for record in evals if (found := _evaluation(record))),
        search_flops=number(described.get("search_flops")),
        capture_flops=number(given.get("capture_flops")) or number(last_flops.get("capture")) or 0.0,
        folder=str(given["model"]) if given.get("model") else None,
        tokens_per_second=_median(steps, "tokens_per_second"),
        memory_bytes=max((m for step in steps if (m := number(step.get("memory_bytes")))), default=None),
        cpu_percent=_median(steps, "cpu_percent"),
        mfu=number(given.get("mfu")),
        joules=number(mapping(given.get("energy")).get("joules")),
    )


def load_training(folder: Path, level: Level | None = None) -> TrainingRecords:
    """Read the folder of a pretraining run as far as it goes.

    Args:
        folder: What pretraining was given as ``--out``.
        level: The teacher's loss on the run's held-out text, where the caller knows it.

    Raises:
        UserError: The folder holds no run.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no run ({CONFIG_FILE} is missing): give the folder that pretraining wrote")
    notes: list[str] = []
    config = read_part(folder / CONFIG_FILE, notes) or {}
    environment = read_part(folder / ENVIRONMENT_FILE, notes) or {}
    result = read_part(folder / RESULT_FILE, notes)
    order = [str(entry.get("name")) for entry in (result or {}).get("models") or [] if isinstance(entry, Mapping)]
    rank = {name: place for place, name in enumerate(order)}
    names = [path.parent.name for path in folder.glob(f"*/{MODEL_FILE}")]
    names.sort(key=lambda name: (rank.get(name, len(rank)), name))
    models = tuple(_model(folder / name, notes) for name in names)
    if result is None:
        done = sum(model.state == DONE for model in models)
        notes.append(
            f"This run has not finished ({RESULT_FILE} is missing or damaged): {done} of {len(models)} models are "
            "done; continue it with --resume"
        )
    reference = number((read_part(folder / GROWTH_FILE, notes) or {}).get("reference_loss"))
    if level is None and reference is not None:
        level = Level("loss to reach", reference)
    command = config.get("command")
    return TrainingRecords(
        folder, result is not None, tuple(notes), {k: v for k, v in config.items() if k != "command"}, environment,
        str(command) if command else None, models, level,
    )  # fmt: skip
