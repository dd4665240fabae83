"""Records of single measurements of a model: the figures that results show, and the values they are made of.

A measurement is a file of its own, written as soon as it is there. Beside its figures it holds what comparisons in
pairs need: the value of every sequence, document or prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from slm_ray.records.base import Part, Record, parse_record
from slm_ray.records.files import read_json

Better = Literal["more", "less"]
Interval = tuple[float, float]


class Figure(Part):
    """One metric of a model."""

    value: float | None  # None where it is not a finite number
    stderr: float | None = None  # Its standard error; None where it is not known
    interval: Interval | None = None  # Its 95% interval; None where it is not known
    better: Better | None = None  # Whether more or less of it is better; None where neither is


class TextFigures(Part):
    """A model on one domain of held-out text."""

    domain: str  # What the text is called
    corpus: str
    corpus_digest: str | None
    loss: float  # Nats per predicted token
    loss_stderr: float | None
    loss_interval: Interval | None
    perplexity: float | None  # ``exp(loss)``; None where that is not a finite number
    perplexity_stderr: float | None
    perplexity_interval: Interval | None
    bits_per_byte: float
    bits_per_byte_stderr: float | None
    bits_per_byte_interval: Interval | None
    tokens: int
    bytes: int
    units: int  # Sequences or documents that were read
    unit: Literal["sequence", "document"]
    tokens_digest: str  # Two models that share it read the same tokens
    window: Literal["packed", "sliding"]  # ``packed`` or ``sliding``
    stride: int | None  # Tokens that a sliding window moves by
    sequence_length: int
    documents: Literal["separate", "joined"] | None  # Of packed text: ``separate`` or ``joined`` attention


class TaskFigures(Part):
    """A model on one of lm-eval's tasks, or on a group of them."""

    task: str  # lm-eval's name
    title: str  # Its name in tables
    version: str
    shots: int | None  # Examples before each question; None for a group whose tasks differ in it
    limit: int | None  # First documents only; None for all
    documents: int
    main: str  # The metric that stands for it
    chance: float | None  # What guessing gives in that metric
    source: str  # ``hub``, or the local files
    metrics: dict[str, Figure]
    members: tuple[str, ...] | None = None  # The tasks of a group; None for a task
    weights: dict[str, float] | None = None  # Each member's share in the group's figures


class GenerationSettings(Part):
    """How prompts were continued."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    references: bool
    prompts_digest: str


class Sample(Part):
    """What a model wrote after one prompt."""

    id: str
    domain: str
    prompt: str
    reference: str | None
    text: str
    tokens: int  # Of the continuation
    ended: bool  # The model ended it itself
    cut: int  # Tokens of the prompt that did not fit the context


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


class SpeedFigures(Part):
    """Reading a batch of prompts of so many tokens, or one decoding step of each after a context of so many."""

    tokens: int
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
    kv_bytes_per_token: float | None
    peak_memory_bytes: int | None
    memory: MemoryFigures | None
    prefill: tuple[SpeedFigures, ...]
    decode: tuple[SpeedFigures, ...]
    energy: EnergyFigures
    threads: int
    device: str
    device_name: str
    precision: str
    notes: tuple[str, ...]


class MeasurementRecord(Record):
    """One measurement of one model: a file of its own, written as soon as it is there."""

    name: str  # The domain, or the name given to ``--tasks``; else the kind
    key: str  # The digest of ``settings``; equal keys have equal results
    settings: dict[str, JsonValue]  # All that decides the result, the model's digest included
    model: str  # The model's name in the evaluation
    params: int  # Its parameters
    seconds: float  # How long the measurement took


class TextRecord(MeasurementRecord):
    """Held-out text."""

    kind: Literal["text"] = "text"
    figures: TextFigures
    losses: tuple[float, ...]  # Sum of losses of each sequence or document, in nats
    counts: tuple[int, ...]  # Predicted tokens of each
    unit_bytes: tuple[int, ...] | None  # Bytes of each document; None where sequences were read
    text_digest: str | None  # Two models that share it read the same documents, in whatever tokens


class TaskValues(Part):
    """What a task's figures are made of."""

    # Metric to the value of each document, for metrics that are means over documents
    samples: dict[str, tuple[float, ...]]
    documents_digest: str  # Two models that share it were asked the same questions
    lm_eval: dict[str, JsonValue]  # lm-eval's own figures, under its own names


class TaskRecord(MeasurementRecord):
    """One name given to ``--tasks``: a task, or all tasks of a group or tag."""

    kind: Literal["task"] = "task"
    tasks: tuple[TaskFigures, ...]  # Every task, and behind them the groups
    values: dict[str, TaskValues]  # Task to its values by document; groups have none
    cut_requests: int  # Requests that were longer than the model reads


class GenerationRecord(MeasurementRecord):
    """Continuations of prompts."""

    kind: Literal["generation"] = "generation"
    figures: GenerationFigures
    # Metric to the value of each prompt, for metrics that models are compared by in pairs
    values: dict[str, tuple[float, ...]]
    # BLEU's and chrF's counts by prompt, which a corpus's figure is made from
    statistics: dict[str, tuple[tuple[int, ...], ...]]
    signatures: dict[str, str]  # sacrebleu's signatures of these two


class EfficiencyRecord(MeasurementRecord):
    """Rates, latencies and memory."""

    kind: Literal["efficiency"] = "efficiency"
    figures: EfficiencyFigures


_KINDS: dict[str, type[MeasurementRecord]] = {
    "text": TextRecord, "task": TaskRecord, "generation": GenerationRecord, "efficiency": EfficiencyRecord,
}  # fmt: skip


def read_measurement(path: Path) -> MeasurementRecord:
    """The record of one measurement, of the class of its kind."""
    value = read_json(path)
    kind = str(value.get("kind")) if isinstance(value, dict) else ""
    return parse_record(_KINDS.get(kind, MeasurementRecord), value, str(path), "measure again with --fresh")
