"""The result of an evaluation, ``evaluate.json``: all figures of all models, and all comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, JsonValue

from slm_ray.config.errors import UserError
from slm_ray.records.base import Part, Record, find_record, read_record
from slm_ray.records.lineage import Lineage
from slm_ray.records.measurement import (
    Better,
    EfficiencyFigures,
    EfficiencyRecord,
    GenerationFigures,
    GenerationRecord,
    MeasurementRecord,
    TaskFigures,
    TaskRecord,
    TextFigures,
    TextRecord,
    read_measurement,
)
from slm_ray.records.run import RunRecord

MODELS_FOLDER = "models"
"""Folder of the measurements inside an evaluation's: ``models/NAME-DIGEST/KIND-….json``."""

Role = Literal["model", "teacher", "random", "first-n", "published"]
MODEL: Final = "model"
TEACHER: Final = "teacher"
RANDOM: Final = "random"
FIRST_N: Final = "first-n"
PUBLISHED: Final = "published"
Verdict = Literal["better", "worse", "within the noise", "noise not known"]


class ModelFigures(Part):
    """Everything that was measured of one model."""

    name: str
    role: Role = "model"  # ``model``, or what it is to the model named in ``of``
    of: str | None = None
    folder: str = ""
    digest: str | None = None  # Of its config, tokenizer and weights
    params: int | None = None
    tokenizer: str | None = None  # The tokenizer's digest, where text was read
    error: str | None = None  # Why it was not measured, in all or in part
    records: str = ""  # The folder of its measurements, relative to the evaluation's
    lineage: Lineage | None = None  # What slm_ray wrote beside it of where it came from
    text: tuple[TextFigures, ...] = ()
    tasks: tuple[TaskFigures, ...] = ()
    generation: GenerationFigures | None = None
    efficiency: EfficiencyFigures | None = None

    @property
    def measured(self) -> bool:
        """Whether anything is known of it."""
        return bool(self.text or self.tasks or self.generation or self.efficiency)


class Difference(Part):
    """One model against another in one quantity."""

    model: str  # The model
    to: str  # The model it is compared with
    kind: Literal["text", "task", "generation"]  # ``text``, ``task`` or ``generation``
    of: str  # The domain, the task, or the metric
    quantity: str  # ``loss``, ``bits_per_byte``, ``acc``, …
    paired: bool  # Both were measured on the same documents, and these are the units of the bootstrap
    difference: float  # ``model - to``
    low: float | None  # Lower end of its 95% interval
    high: float | None  # Upper end
    stderr: float | None  # Its standard error
    better: Better  # Whether ``less`` or ``more`` is better
    verdict: Verdict  # ``within the noise`` where the interval holds 0


class EvaluationSpent(Part):
    """What an evaluation took: seconds of wall time, and seconds by kind of measurement, ``loading`` among them."""

    seconds: float
    models_loaded: int
    by_part: dict[str, float]


class EvaluationResult(Record):
    """All figures of an evaluation, with their intervals, and all comparisons."""

    FILE: ClassVar[str] = "evaluate.json"
    finished: bool = True  # False for one put together from the measurements of an evaluation that has not ended
    command: str | None = None  # The command as it was given
    config: dict[str, JsonValue] = Field(default_factory=dict)  # Every option by name
    environment: dict[str, JsonValue] = Field(default_factory=dict)  # The machine and the versions
    precision: str = ""
    device: str = ""
    spent: EvaluationSpent | None = None
    suites: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # Suite to its tasks and groups
    notes: tuple[str, ...] = ()  # What could not be had, a sentence each
    models: tuple[ModelFigures, ...] = ()  # The first is the one that the others are compared with
    differences: tuple[Difference, ...] = ()


def read_evaluation(folder: Path) -> EvaluationResult:
    """The result of an evaluation, or what there is of one that has not finished."""
    found = find_record(folder, EvaluationResult)
    return found or unfinished_evaluation(folder)


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds an evaluation, finished or not."""
    if (folder / EvaluationResult.FILE).is_file():
        return True
    try:
        return read_record(folder, RunRecord).stage == "evaluate"
    except UserError:
        return False


def unfinished_evaluation(folder: Path) -> EvaluationResult:
    """A result as far as the measurements on record give one, without comparisons."""
    if not is_evaluation(folder):
        raise UserError(
            f"{folder} does not hold an evaluation ({EvaluationResult.FILE} is missing): give the folder of one"
        )
    run = read_record(folder, RunRecord)
    models: dict[str, ModelFigures] = {}
    notes: list[str] = []
    count = 0
    for path in sorted((folder / MODELS_FOLDER).glob("*/*.json")):
        try:
            record = read_measurement(path)
        except UserError as error:
            notes.append(str(error))
            continue
        known = models.get(record.model) or ModelFigures(name=record.model, params=record.params)
        models[record.model] = with_measurement(known, record)
        count += 1
    notes.append(
        f"This evaluation has not finished: its {count} measurements on record are shown, without comparisons; "
        f"slm-ray evaluate --resume {folder} continues it"
    )
    return EvaluationResult(
        finished=False, command=run.command, config=run.options, notes=tuple(notes), models=tuple(models.values())
    )


_SAMPLES_SHOWN = 8


def with_measurement(model: ModelFigures, record: MeasurementRecord) -> ModelFigures:
    """A model's figures with one more measurement; a task that two names share is shown once, groups last."""
    changes: dict[str, Any] = {"params": record.params}
    match record:
        case TextRecord():
            changes["text"] = (*model.text, record.figures)
        case TaskRecord():
            known = {row.task for row in model.tasks}
            rows = (*model.tasks, *(row for row in record.tasks if row.task not in known))
            changes["tasks"] = tuple(sorted(rows, key=lambda row: row.members is not None))
        case GenerationRecord():
            shown = record.figures.samples[:_SAMPLES_SHOWN]
            changes["generation"] = record.figures.model_copy(update={"samples": shown})
        case EfficiencyRecord():
            changes["efficiency"] = record.figures
    return model.model_copy(update=changes)
