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
    """What a training process and its children use.

    Attributes:
        cpu_percent: Mean since the sample before; 100 is one core.
        gpu_percent: Share of the last moments in which the GPU ran anything; None without a GPU that can say.
        memory_bytes: Peak resident memory of the process so far.
        gpu_memory_bytes: Peak memory that torch has held on the GPU so far; None without one.
    """

    cpu_percent: float
    gpu_percent: float | None
    memory_bytes: int
    gpu_memory_bytes: int | None


class MeasuredEnergy(Part):
    """Energy of a training: joules (None where the machine has no counters), their source, and the step it began at."""

    joules: float | None
    source: str
    from_step: int


class TrainStep(Record, ResourceUsage):
    """One optimiser step.

    Attributes:
        step: Counted from 1.
        tokens: Tokens trained on so far.
        loss: The training loss in nats per token, cross-entropy and divergence weighted.
        ce: The mean cross-entropy.
        kd: The mean divergence from the teacher; None without one.
        lr: The learning rate.
        kd_weight: Weight of the divergence.
        grad_norm: Norm before clipping; None where fp16 skipped the step.
        seconds: Time of this step.
        tokens_per_second: Its speed.
        flops: FLOPs so far.
    """

    FILE: ClassVar[str] = "steps.jsonl"
    step: int
    tokens: int
    loss: float
    ce: float
    kd: float | None
    lr: float
    kd_weight: float
    grad_norm: float | None
    seconds: float
    tokens_per_second: float
    flops: SpentFlops


class TrainEvaluation(Record):
    """One evaluation on the held-out tokens; a figure that is not finite is None.

    Attributes:
        step: Optimiser steps before it.
        tokens: Tokens trained on before it.
        loss: Nats per token.
        stderr: Its standard error over sequences.
        bits_per_byte: The same loss per byte of text.
        eval_tokens: Tokens it was measured on.
        flops: FLOPs of training before it.
        seconds: Time in steps before it.
    """

    FILE: ClassVar[str] = "evals.jsonl"
    step: int
    tokens: int
    loss: float | None
    stderr: float | None
    bits_per_byte: float | None
    eval_tokens: int
    flops: SpentFlops
    seconds: float


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
    """Where a training ended.

    Attributes:
        seconds: Time in steps.
        mfu: Model FLOPs utilisation; None where the device's peak is not known.
    """

    step: int
    tokens: int
    flops: SpentFlops
    seconds: float
    best: BestEvaluation | None
    usage: ResourceUsage
    mfu: float | None
    energy: MeasuredEnergy


class TrainFailure(Part):
    """Why a training stopped, and whether the same command may succeed when it is resumed."""

    message: str
    resumable: bool = False


class TrainStatus(Record):
    """Where a model's training stands; written to its folder once it has ended.

    Attributes:
        step: The last step.
        loss: Its loss.
        rate: Its speed in tokens per second.
        eval: The last held-out loss.
        note: What it waits for.
    """

    FILE: ClassVar[str] = "status.json"
    step: int = 0
    loss: float | None = None
    rate: float | None = None
    eval: float | None = None
    begin: TrainBegin | None = None
    end: TrainEnd | None = None
    failure: TrainFailure | None = None
    note: str | None = None


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
    """What is known of a model before its first step.

    Attributes:
        lineage: The student's own (``slm_ray.json``) where its weights are taken, else only whom its sizes were
            pruned from.
        student: The student's public name; None for a model from scratch.
        distilled_from: The teacher in training.
        data: What it is trained on.
    """

    lineage: dict[str, Any]
    student: str | None
    distilled_from: TeacherSource | None
    data: TrainingData


class ScratchFacts(Part):
    """A model from scratch: its target size, its positions, and the batch and rate it is trained with."""

    target: int
    positions: str
    batch_size: int
    learning_rate: float
    params_without_embeddings: int


class TrainedModel(Record):
    """One model of a run, before its first step.

    Attributes:
        start: Where its weights come from: ``student``, ``random``, ``first-n``, ``random-subnet``, ``scratch`` or
            ``grown``.
        source: The student's folder or hub id.
        params: Parameters, tied ones once.
        dtype: The type that its exported weights have; checkpoints are fp32.
        flops_per_token: FLOPs of a token's forward pass.
        flops_exact: Whether they come from its sizes (else twice its parameters).
        architecture: Its sizes; None where its family is not declared.
        search_flops: What the search that found it cost; None where that is not known.
        scratch: Its batch and rate, where it starts from scratch.
        grown_from: The stage before it, where it grew.
        origin: Where it comes from.
    """

    FILE: ClassVar[str] = "model.json"
    start: str
    source: str
    params: int
    dtype: str = "fp32"
    flops_per_token: float
    flops_exact: bool
    architecture: Sizes | None
    search_flops: float | None = 0.0
    scratch: ScratchFacts | None = None
    grown_from: str | None = None
    origin: Origin


class ModelOutcome(Part):
    """What one model's training came to.

    Attributes:
        name: Its name within the run.
        status: ``done`` or ``failed``.
        error: Why it failed.
        capture_flops: What the capture of its logit store cost.
        checkpoints: Where they are.
        evals: All its evaluations.
        model: Its exported folder, relative to the run; None for a failed one.
        dtype: The type of the exported weights.
        bytes: Their size.
        layers: Of a stage of growth, its depth.
    """

    name: str
    status: Literal["done", "failed"]
    error: str | None = None
    start: str
    params: int
    search_flops: float | None
    capture_flops: float
    flops_exact: bool
    checkpoints: str
    begin: TrainBegin | None
    evals: tuple[TrainEvaluation, ...]
    model: str | None = None
    dtype: str | None = None
    bytes: int | None = None
    step: int | None = None
    tokens: int | None = None
    flops: SpentFlops | None = None
    seconds: float | None = None
    best: BestEvaluation | None = None
    usage: ResourceUsage | None = None
    mfu: float | None = None
    energy: MeasuredEnergy | None = None
    layers: int | None = None


class ModelResult(Record, ModelOutcome):
    """A finished model's result, in its own folder."""

    FILE: ClassVar[str] = "result.json"


class GrowthGoal(Part):
    """What growth starts from and must reach.

    Attributes:
        source: The model whose layers are inherited.
        reference_loss: The held-out loss to reach: nats per token.
        reference_from: Whose loss that is, or the option that gave it.
    """

    source: str
    source_digest: str
    source_layers: int
    reference_loss: float
    reference_from: str


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
