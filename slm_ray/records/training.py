"""The records of a pretraining run: written by the training loop, read by resume, reports, trackers and sweeps.

A run's folder holds ``inputs.json``, ``growth.json`` and ``result.json``; each model's folder below it holds
``model.json``, ``steps.jsonl``, ``evals.jsonl``, ``status.json`` and its own ``result.json``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, PlainSerializer

from slm_ray.records.architecture import Architecture
from slm_ray.records.base import Part, Record

CHECKPOINTS_FOLDER, EXPORT_FOLDER, HELD_OUT_FOLDER, TOKENIZER_FOLDER = "checkpoints", "model", "held_out", "tokenizer"
TABLE_FILE = "table.txt"

Sizes = Annotated[
    Architecture,
    BeforeValidator(lambda value: Architecture.from_json(value) if isinstance(value, dict) else value),
    PlainSerializer(lambda value: value.to_json()),
]
"""An architecture, in JSON as ``Architecture.to_json`` has it."""
Setting = str | int | float | None
"""An option's value, as a lineage keeps it."""


class SpentFlops(Part):
    """FLOPs so far: the model's own, a teacher's in the loop, and those of the whole capture of a logit store."""

    own: float = 0.0
    teacher: float = 0.0
    capture: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.own + self.teacher + self.capture


class ResourceUsage(Part):
    """What a training process uses."""

    cpu_percent: float  # Mean since the sample before; 100 is one core
    # Share of the last moments in which the GPU ran anything; None without a GPU that can say
    gpu_percent: float | None
    memory_bytes: int  # Peak resident memory of the process so far
    gpu_memory_bytes: int | None  # Peak memory that torch has held on the GPU so far; None without one


class MeasuredEnergy(Part):
    """Energy of a training: joules (None where the machine has no counters), their source, and the step it began at."""

    joules: float | None
    source: str
    from_step: int


class TrainStep(Record, ResourceUsage):
    """One optimiser step."""

    FILE: ClassVar[str] = "steps.jsonl"
    step: int  # Counted from 1
    tokens: int  # Tokens trained on so far
    loss: float  # The training loss in nats per token, cross-entropy and divergence weighted
    ce: float  # The mean cross-entropy
    kd: float | None  # The mean divergence from the teacher; None without one
    lr: float  # The learning rate
    kd_weight: float  # Weight of the divergence
    grad_norm: float | None  # Norm before clipping; None where fp16 skipped the step
    seconds: float  # Time of this step
    tokens_per_second: float  # Its speed
    flops: SpentFlops  # FLOPs so far


class TrainEvaluation(Record):
    """One evaluation on the held-out tokens; a figure that is not finite is None."""

    FILE: ClassVar[str] = "evals.jsonl"
    step: int  # Optimiser steps before it
    tokens: int  # Tokens trained on before it
    loss: float | None  # Nats per token
    stderr: float | None  # Its standard error over sequences
    bits_per_byte: float | None  # The same loss per byte of text
    eval_tokens: int  # Tokens it was measured on
    flops: SpentFlops  # FLOPs of training before it
    seconds: float  # Time in steps before it


class BestEvaluation(Part):
    """The step and the held-out loss of the best evaluation."""

    step: int
    loss: float


class EngineFacts(Part):
    """What really runs, read off the engine's own objects."""

    engine: str
    optimizer: str
    precision: str
    weights: str
    zero: int


class TrainBegin(Part):
    """What a process trains with, and from which step."""

    step: int
    runs: EngineFacts
    micro_batch: int


class TrainEnd(Part):
    """Where a training ended."""

    step: int
    tokens: int
    flops: SpentFlops
    seconds: float  # Time in steps
    best: BestEvaluation | None
    usage: ResourceUsage
    mfu: float | None  # Model FLOPs utilisation; None where the device's peak is not known
    energy: MeasuredEnergy


class TrainFailure(Part):
    """Why a training stopped, and whether the same command may succeed when it is resumed."""

    message: str
    resumable: bool = False


class TrainStatus(Record):
    """Where a model's training stands; written to its folder once it has ended."""

    FILE: ClassVar[str] = "status.json"
    step: int = 0  # The last step
    loss: float | None = None  # Its loss
    rate: float | None = None  # Its speed in tokens per second
    eval: float | None = None  # The last held-out loss
    begin: TrainBegin | None = None
    end: TrainEnd | None = None
    failure: TrainFailure | None = None
    note: str | None = None  # What it waits for


class TeacherSource(Part):
    """A teacher as lineages name it."""

    # Lineages of searches say more of a teacher than is needed here.
    model_config = ConfigDict(extra="ignore")
    name: str
    family: str | None = None
    digest: str | None = None
    licence: str | None = None


class TrainingData(Part):
    """What a training reads and is measured on, by its digests."""

    corpus: str
    corpus_digest: str | None
    training_tokens: str
    different_tokens: int
    held_out_tokens: str
    tokenizer: str
    logit_store: str | None


class Origin(Part):
    """What is known of a model before its first step."""

    # The student's own (``slm_ray.json``) where its weights are taken, else only whom its sizes were pruned from
    lineage: dict[str, Any]
    student: str | None  # The student's public name; None for a model from scratch
    distilled_from: TeacherSource | None  # The teacher in training
    data: TrainingData  # What it is trained on


class ScratchFacts(Part):
    """A model from scratch: its target size, its positions, and the batch and rate it is trained with."""

    target: int
    positions: str
    batch_size: int
    learning_rate: float
    params_without_embeddings: int


class TrainedModel(Record):
    """One model of a run, before its first step."""

    FILE: ClassVar[str] = "model.json"
    # Where its weights come from: ``student``, ``random``, ``first-n``, ``random-subnet``, ``scratch`` or ``grown``
    start: str
    source: str  # The student's folder or hub id
    params: int  # Parameters, tied ones once
    dtype: str = "fp32"  # The type that its exported weights have; checkpoints are fp32
    flops_per_token: float  # FLOPs of a token's forward pass
    flops_exact: bool  # Whether they come from its sizes (else twice its parameters)
    architecture: Sizes | None  # Its sizes; None where its family is not declared
    search_flops: float | None = 0.0  # What the search that found it cost; None where that is not known
    scratch: ScratchFacts | None = None  # Its batch and rate, where it starts from scratch
    grown_from: str | None = None  # The stage before it, where it grew
    origin: Origin  # Where it comes from


class ModelOutcome(Part):
    """What one model's training came to."""

    name: str  # Its name within the run
    status: Literal["done", "failed"]  # ``done`` or ``failed``
    error: str | None = None  # Why it failed
    start: str
    params: int
    search_flops: float | None
    capture_flops: float  # What the capture of its logit store cost
    flops_exact: bool
    checkpoints: str  # Where they are
    begin: TrainBegin | None
    evals: tuple[TrainEvaluation, ...]  # All its evaluations
    model: str | None = None  # Its exported folder, relative to the run; None for a failed one
    dtype: str | None = None  # The type of the exported weights
    bytes: int | None = None  # Their size
    step: int | None = None
    tokens: int | None = None
    flops: SpentFlops | None = None
    seconds: float | None = None
    best: BestEvaluation | None = None
    usage: ResourceUsage | None = None
    mfu: float | None = None
    energy: MeasuredEnergy | None = None
    layers: int | None = None  # Of a stage of growth, its depth


class ModelResult(Record, ModelOutcome):
    """A finished model's result, in its own folder."""

    FILE: ClassVar[str] = "result.json"


class GrowthGoal(Part):
    """What growth starts from and must reach."""

    source: str  # The model whose layers are inherited
    source_digest: str
    source_layers: int
    reference_loss: float  # The held-out loss to reach: nats per token
    reference_from: str  # Whose loss that is, or the option that gave it


class GrowthTarget(Record, GrowthGoal):
    """The goal in a run's folder: measured once, kept for resumes."""

    FILE: ClassVar[str] = "growth.json"


class GrowthResult(GrowthGoal):
    """What growth came to: the sufficient depth (None if no stage reached the reference) and the cost of all stages."""

    sufficient_layers: int | None
    layers: int
    final_loss: float | None
    stages: int
    tokens: int
    flops: SpentFlops
    seconds: float


class TrainResult(Record):
    """A finished run's result."""

    FILE: ClassVar[str] = "result.json"
    command: str
    models: tuple[ModelOutcome, ...]
    growth: GrowthResult | None = None


class TrainInputs(Record):
    """Digests of what a run reads, which a resume must find unchanged."""

    FILE: ClassVar[str] = "inputs.json"
    teacher: str | None
    tokenizer: str
    training_tokens: str
    held_out_tokens: str
    logit_store: str | None
    sizes_batches_and_rates: str | None = None


class EarlierTraining(Part):
    """What was spent on the weights before this training: names of trainings, and their tokens and FLOPs together."""

    names: tuple[str, ...]
    tokens: int
    flops: float


class TrainingLineage(Part):
    """How a model was trained: the ``training`` of its lineage (``slm_ray.json``)."""

    name: str
    start: str
    student: str | None
    grown_from: str | None
    command: str | None
    slm_ray: str
    params: int
    step: int
    tokens: int | None
    flops: SpentFlops | None
    seconds: float | None
    search_flops: float | None
    distilled_from: TeacherSource | None
    data: TrainingData
    distillation: dict[str, Setting]
    optimisation: dict[str, Setting]
    joules: float | None
    earlier: EarlierTraining | None
    before: TrainEvaluation | None
    after: TrainEvaluation | None
