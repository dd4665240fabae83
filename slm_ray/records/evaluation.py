"""Records of an evaluation: one file per measurement of a model, and ``evaluate.json`` with all figures.

A measurement's record holds its figures as the result shows them and, beside them, what comparisons in pairs need: the
value of every sequence, document or prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from slm_ray.config.errors import UserError
from slm_ray.records.base import SCHEMA_VERSION, Part, Record, find_record, read_record
from slm_ray.records.files import read_json
from slm_ray.records.run import RunRecord

MODELS_FOLDER = "models"
"""Folder of the measurements inside an evaluation's: ``models/NAME-DIGEST/KIND-….json``."""

Role = Literal["model", "teacher", "random", "first-n", "published"]
MODEL: Final = "model"
TEACHER: Final = "teacher"
RANDOM: Final = "random"
FIRST_N: Final = "first-n"
PUBLISHED: Final = "published"
Better = Literal["more", "less"]
Verdict = Literal["better", "worse", "within the noise", "noise not known"]
Interval = tuple[float, float]


class Figure(Part):
    """One metric of a model.

    Attributes:
        value: None where it is not a finite number.
        stderr: Its standard error; None where it is not known.
        interval: Its 95% interval; None where it is not known.
        better: Whether more or less of it is better; None where neither is.
    """

    value: float | None
    stderr: float | None = None
    interval: Interval | None = None
    better: Better | None = None


class TextFigures(Part):
    """A model on one domain of held-out text.

    Attributes:
        domain: What the text is called.
        loss: Nats per predicted token.
        perplexity: ``exp(loss)``; None where that is not a finite number.
        units: Sequences or documents that were read.
        tokens_digest: Two models that share it read the same tokens.
        window: ``packed`` or ``sliding``.
        stride: Tokens that a sliding window moves by.
        documents: Of packed text: ``separate`` or ``joined`` attention.
    """

    domain: str
    corpus: str
    corpus_digest: str | None
    loss: float
    loss_stderr: float | None
    loss_interval: Interval | None
    perplexity: float | None
    perplexity_stderr: float | None
    perplexity_interval: Interval | None
    bits_per_byte: float
    bits_per_byte_stderr: float | None
    bits_per_byte_interval: Interval | None
    tokens: int
    bytes: int
    units: int
    unit: Literal["sequence", "document"]
    tokens_digest: str
    window: Literal["packed", "sliding"]
    stride: int | None
    sequence_length: int
    documents: Literal["separate", "joined"] | None


class TaskFigures(Part):
    """A model on one of lm-eval's tasks, or on a group of them.

    Attributes:
        task: lm-eval's name.
        title: Its name in tables.
        shots: Examples before each question; None for a group whose tasks differ in it.
        limit: First documents only; None for all.
        main: The metric that stands for it.
        chance: What guessing gives in that metric.
        source: ``hub``, or the local files.
        members: The tasks of a group; None for a task.
        weights: Each member's share in the group's figures.
    """

    task: str
    title: str
    version: str
    shots: int | None
    limit: int | None
    documents: int
    main: str
    chance: float | None
    source: str
    metrics: dict[str, Figure]
    members: tuple[str, ...] | None = None
    weights: dict[str, float] | None = None


class GenerationSettings(Part):
    """How prompts were continued."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    references: bool
    prompts_digest: str


class Sample(Part):
    """What a model wrote after one prompt.

    Attributes:
        tokens: Of the continuation.
        ended: The model ended it itself.
        cut: Tokens of the prompt that did not fit the context.
    """

    id: str
    domain: str
    prompt: str
    reference: str | None
    text: str
    tokens: int
    ended: bool
    cut: int


class GenerationFigures(Part):
    """What a model wrote, in figures; a result holds the first samples, a measurement all of them."""

    prompts: int
    settings: GenerationSettings
    metrics: dict[str, Figure]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]


class Latency(Part):
    """Milliseconds over the runs of one step."""

    median: float
    p90: float
    p99: float
    min: float
    max: float


class PrefillFigures(Part):
    """Reading a batch of prompts; rates are those at the median latency, ``mfu`` the share of the matmul rate."""

    prompt_tokens: int
    batch: int
    tokens_per_second: float
    flops_per_second: float
    latency_ms: Latency
    runs: int
    mfu: float | None = None


class DecodeFigures(Part):
    """Generating one token for each text of a batch, after a context."""

    context_tokens: int
    batch: int
    tokens_per_second: float
    latency_ms: Latency
    runs: int


class MemoryFigures(Part):
    """The most memory that reading a batch and generating a few tokens needs above the weights."""

    above_weights_bytes: int
    prompt_tokens: int
    batch: int
    source: str


class EnergyFigures(Part):
    """Energy of decoding; None where nothing measures it."""

    joules_per_token: float | None
    source: str
    of: str | None = None


class EfficiencyFigures(Part):
    """What a model costs to run on one machine."""

    params: int
    weights_bytes: int
    flops_per_token: float
    flops_sequence_length: int
    flops_source: str
    kv_bytes_per_token: float | None
    kv_bytes_per_token_expected: float | None
    peak_memory_bytes: int | None
    memory: MemoryFigures | None
    prefill: tuple[PrefillFigures, ...]
    decode: tuple[DecodeFigures, ...]
    energy: EnergyFigures
    matmul_flops_per_second: float
    peak_flops_per_second: float | None
    mfu_prefill: float | None
    others_cpu_share: float
    threads: int
    device: str
    device_name: str
    precision: str
    notes: tuple[str, ...]


class MeasurementRecord(Record):
    """One measurement of one model: a file of its own, written as soon as it is there.

    Attributes:
        name: The domain, or the name given to ``--tasks``; else the kind.
        key: The digest of ``settings``; equal keys have equal results.
        settings: All that decides the result, the model's digest included.
        model: The model's name in the evaluation.
        params: Its parameters.
        seconds: How long the measurement took.
    """

    name: str
    key: str
    settings: dict[str, JsonValue]
    model: str
    params: int
    seconds: float


class TextRecord(MeasurementRecord):
    """Held-out text.

    Attributes:
        losses: Sum of losses of each sequence or document, in nats.
        counts: Predicted tokens of each.
        unit_bytes: Bytes of each document; None where sequences were read.
        text_digest: Two models that share it read the same documents, in whatever tokens.
    """

    kind: Literal["text"] = "text"
    figures: TextFigures
    losses: tuple[float, ...]
    counts: tuple[int, ...]
    unit_bytes: tuple[int, ...] | None
    text_digest: str | None


class TaskValues(Part):
    """What a task's figures are made of.

    Attributes:
        samples: Metric to the value of each document, for metrics that are means over documents.
        documents_digest: Two models that share it were asked the same questions.
        lm_eval: lm-eval's own figures, under its own names.
    """

    samples: dict[str, tuple[float, ...]]
    documents_digest: str
    lm_eval: dict[str, JsonValue]


class TaskRecord(MeasurementRecord):
    """One name given to ``--tasks``: a task, or all tasks of a group or tag.

    Attributes:
        tasks: Every task, and behind them the groups.
        values: Task to its values by document; groups have none.
        cut_requests: Requests that were longer than the model reads.
    """

    kind: Literal["task"] = "task"
    tasks: tuple[TaskFigures, ...]
    values: dict[str, TaskValues]
    cut_requests: int


class GenerationRecord(MeasurementRecord):
    """Continuations of prompts.

    Attributes:
        values: Metric to the value of each prompt, for metrics that models are compared by in pairs.
        statistics: BLEU's and chrF's counts by prompt, which a corpus's figure is made from.
        signatures: sacrebleu's signatures of these two.
    """

    kind: Literal["generation"] = "generation"
    figures: GenerationFigures
    values: dict[str, tuple[float, ...]]
    statistics: dict[str, tuple[tuple[int, ...], ...]]
    signatures: dict[str, str]


class EfficiencyRecord(MeasurementRecord):
    """Rates, latencies and memory."""

    kind: Literal["efficiency"] = "efficiency"
    figures: EfficiencyFigures


Measurement = Annotated[
    TextRecord | TaskRecord | GenerationRecord | EfficiencyRecord, Field(discriminator="kind")
]  # fmt: skip
_MEASUREMENT: TypeAdapter[Any] = TypeAdapter(Measurement)
M = TypeVar("M", bound=MeasurementRecord)


class ModelFigures(Part):
    """Everything that was measured of one model.

    Attributes:
        role: ``model``, or what it is to the model named in ``of``.
        digest: Of its config, tokenizer and weights.
        tokenizer: The tokenizer's digest, where text was read.
        error: Why it was not measured, in all or in part.
        records: The folder of its measurements, relative to the evaluation's.
        lineage: What slm_ray wrote beside it of where it came from.
    """

    name: str
    role: Role = "model"
    of: str | None = None
    folder: str = ""
    digest: str | None = None
    params: int | None = None
    tokenizer: str | None = None
    error: str | None = None
    records: str = ""
    lineage: dict[str, JsonValue] | None = None
    text: tuple[TextFigures, ...] = ()
    tasks: tuple[TaskFigures, ...] = ()
    generation: GenerationFigures | None = None
    efficiency: EfficiencyFigures | None = None

    @property
    def measured(self) -> bool:
        """Whether anything is known of it."""
        return bool(self.text or self.tasks or self.generation or self.efficiency)


class Difference(Part):
    """One model against another in one quantity.

    Attributes:
        model: The model.
        to: The model it is compared with.
        kind: ``text``, ``task`` or ``generation``.
        of: The domain, the task, or the metric.
        quantity: ``loss``, ``bits_per_byte``, ``acc``, …
        paired: Both were measured on the same documents, and these are the units of the bootstrap.
        difference: ``model - to``.
        low: Lower end of its 95% interval.
        high: Upper end.
        stderr: Its standard error.
        better: Whether ``less`` or ``more`` is better.
        verdict: ``within the noise`` where the interval holds 0.
    """

    model: str
    to: str
    kind: Literal["text", "task", "generation"]
    of: str
    quantity: str
    paired: bool
    difference: float
    low: float | None
    high: float | None
    stderr: float | None
    better: Better
    verdict: Verdict


class EvaluationSpent(Part):
    """What an evaluation took: seconds of wall time, and seconds by kind of measurement, ``loading`` among them."""

    seconds: float
    models_loaded: int
    by_part: dict[str, float]


class EvaluationResult(Record):
    """All figures of an evaluation, with their intervals, and all comparisons.

    Attributes:
        finished: False for one put together from the measurements of an evaluation that has not ended.
        command: The command as it was given.
        config: Every option by name.
        environment: The machine and the versions.
        suites: Suite to its tasks and groups.
        notes: What could not be had, a sentence each.
        models: The first is the one that the others are compared with.
    """

    FILE: ClassVar[str] = "evaluate.json"
    finished: bool = True
    command: str | None = None
    config: dict[str, JsonValue] = Field(default_factory=dict)
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    precision: str = ""
    device: str = ""
    spent: EvaluationSpent | None = None
    suites: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    models: tuple[ModelFigures, ...] = ()
    differences: tuple[Difference, ...] = ()


def read_measurement(path: Path) -> TextRecord | TaskRecord | GenerationRecord | EfficiencyRecord:
    """The record of one measurement.

    Raises:
        UserError: It is missing, damaged, or of another version.
    """
    value = read_json(path)
    if isinstance(value, dict) and value.get("version") != SCHEMA_VERSION:
        raise UserError(f"{path} was written by another version of slm_ray: measure again with --fresh")
    try:
        found: TextRecord | TaskRecord | GenerationRecord | EfficiencyRecord = _MEASUREMENT.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(f"{path} is damaged ({place}: {first['msg']}): delete it and evaluate again") from None
    return found


def read_evaluation(folder: Path) -> EvaluationResult:
    """The result of an evaluation, or what there is of one that has not finished.

    Args:
        folder: The evaluation's folder.

    Raises:
        UserError: It holds no evaluation, or ``evaluate.json`` is damaged or of another version.
    """
    found = find_record(folder, EvaluationResult)
    return found or _unfinished(folder)


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds an evaluation, finished or not."""
    if (folder / EvaluationResult.FILE).is_file():
        return True
    try:
        return read_record(folder, RunRecord).stage == "evaluate"
    except UserError:
        return False


def _unfinished(folder: Path) -> EvaluationResult:
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
