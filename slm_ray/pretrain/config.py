"""The options of pretraining: a tree of frozen components, which is also what a training job holds.

Options of the learning-rate schedule and of checkpoints are declared beside their code. The others are here because
their code needs torch, and a mistyped option is refused before that is imported.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from slm_ray.config.base import Config, Count, Names, Numbers, option
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.units import format_count, parse_number
from slm_ray.data.config import TrainDataConfig
from slm_ray.distill.config import FULL, KINDS, DistillConfig
from slm_ray.pretrain.checkpoints import CheckpointConfig
from slm_ray.pretrain.schedules import ScheduleConfig

STARTS = ("student", "random", "first-n", "random-subnet")
COMPARED_STARTS = ("student", "random", "first-n")
SCRATCH = "scratch"
DISTILL = ("none", *KINDS)
AUTO = "auto"
# Used where nothing is given; with --scratch, batch and rate follow from the size.
DEFAULT_BATCH_SIZE, DEFAULT_LEARNING_RATE = 8, 1e-3
# Every element is updated by itself, so ZeRO may shard the parameters. LAMB needs the norm of a whole tensor, and Muon
# the matrix itself.
ELEMENTWISE = frozenset({"adamw", "lion"})
# Optimisers that the ladder's learning rate, which is AdamW's, is right for.
_AS_ADAMW = ("adamw", "muon")
MAY_CHANGE = (
    "workers", "min_workers", "threads", "concurrent", "device", "address", "tracker", "engine", "zero", "offload",
    "micro_batch", "launcher", "activation_checkpointing", "keep_last", "spike", "storage", "dtype",
)  # fmt: skip
"""Options that may be given with ``--resume``: they do not decide the result."""


def _micro_batch(value: Any) -> Any:
    if value is None or value == AUTO:
        return value
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if size < 1:
        raise ValueError(f"must be a whole number or auto, got {value!r}")
    return size


MicroBatch = Annotated[int | Literal["auto"] | None, BeforeValidator(_micro_batch)]


class ModelConfig(Config):
    """The models that are trained, and their teacher."""

    student: Names | None = option(
        None, "model folder, .gguf file or hub id to train, or smollm2-135m; several with commas"
    )
    scratch: Names | None = option(
        None, "instead of --student: models from scratch with about so many parameters, e.g. 20M; several with commas",
        metavar="SIZES",
    )  # fmt: skip
    positions: Literal["rotary", "learned", "alibi", "none"] = option("rotary", "--scratch: position encoding")
    tokenizer: str | None = option(
        None, "--scratch: folder, hub id, or train:SIZE on --data [default: the teacher's, else smollm2-135m's]"
    )
    start: Names = option(("student",), f"whose weights to start from; several with commas: {', '.join(STARTS)}")
    compare: bool = option(False, "train student, random and first-n starts and compare them")
    teacher: str | None = option(None, "hub id, folder or .gguf file [default: what the student was pruned from]")

    @property
    def students(self) -> tuple[str, ...]:
        """The folders or hub ids of the students; none with ``scratch``."""
        return self.student or ()

    @property
    def starts(self) -> tuple[str, ...]:
        """The starts to train."""
        return (SCRATCH,) if self.scratch else COMPARED_STARTS if self.compare else self.start

    @property
    def scratch_sizes(self) -> dict[str, int]:
        """Parameters of the models from scratch by their label, such as ``20M``; empty without ``scratch``."""
        counts = [int(parse_number(part)) for part in self.scratch or ()]
        return {format_count(count) if float(count) == parse_number(format_count(count)) else str(count): count
                for count in counts}  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scratch is None:
            return self._check_students()
        try:
            self.scratch_sizes  # noqa: B018
            whole = bool(self.scratch) and all("%" not in part for part in self.scratch)
        except UserError:
            whole = False
        if not whole:
            given = ",".join(self.scratch)
            raise ValueError(f"--scratch '{given}' must be parameters like 20M, or several with commas")
        if self.student is not None:
            raise ValueError("--student and --scratch are both given: train existing models, or new ones")
        if self.compare or self.start != ("student",):
            flag = "--compare" if self.compare else "--start"
            raise ValueError(f"{flag} takes existing weights, and --scratch starts without: leave one out")
        return self

    def _check_students(self) -> Self:
        for name, value, default in (("positions", self.positions, "rotary"), ("tokenizer", self.tokenizer, None)):
            if value != default:
                raise ValueError(f"--{name} {value} belongs to --scratch: a --student has its own; leave it out")
        for start in self.start:
            if start not in STARTS:
                raise ValueError(f"--start: {unknown_name('start', start, STARTS)}")
        return self


class BatchConfig(Config):
    """How many tokens are trained on, and how they are divided into steps."""

    tokens: Count = option(20_000_000, "tokens to train each model on, e.g. 300k or 20M", metavar="COUNT", ge=1)
    data_tokens: Count | None = option(
        None, "different tokens of --data to train on, repeated for several epochs [default: as many as --tokens]"
    )
    batch_size: int | None = option(
        None, "sequences per optimiser step, over all workers [default: 8; with --scratch by size and tokens]", ge=1
    )
    micro_batch: MicroBatch = option(
        None, "sequences per forward pass of a worker, or auto [default: its whole share; on a CPU 2,048 tokens]"
    )
    seed: Numbers = option((0,), "seed of weights and order; several with commas", metavar="SEEDS")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.seed or min(self.seed) < 0:
            raise ValueError(f"--seed must be whole numbers from 0 on, like 0,1,2, got {','.join(map(str, self.seed))}")
        return self


class OptimizerConfig(Config):
    """The optimiser and its learning rate."""

    optimizer: Literal["adamw", "lion", "lamb", "muon"] = option("adamw", "optimiser")
    learning_rate: float | None = option(
        None, "peak learning rate [default: 0.001; with --scratch by size and batch]", gt=0
    )
    weight_decay: float = option(0.1, "decoupled weight decay of matrices", ge=0)
    beta1: float = option(0.9, "first beta of the optimiser", ge=0, le=1)
    beta2: float = option(0.95, "second beta of the optimiser", ge=0, le=1)
    clip: float = option(1.0, "largest norm of the gradient; 0 clips nothing", ge=0)

    @property
    def rate(self) -> float:
        """The peak rate, once it is known.

        Raises:
            ValueError: It follows from a model's size, and this config is of no model yet.
        """
        if self.learning_rate is None:
            raise ValueError("the learning rate of a model from scratch follows from its size")
        return self.learning_rate


class EngineConfig(Config):
    """What runs the steps."""

    engine: Literal["deepspeed", "torch"] = option("deepspeed", "what runs the steps")
    zero: int = option(0, "DeepSpeed ZeRO stage: 0, 1, 2 or 3", ge=0, le=3)
    offload: bool = option(False, "keep optimiser state in CPU memory (ZeRO 1 to 3)")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "compute type; auto: bf16 where the processor has it"
    )
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine == "torch" and (self.zero or self.offload):
            raise ValueError("--zero and --offload are DeepSpeed's: leave out --engine torch")
        if self.offload and not self.zero:
            raise ValueError("--offload needs ZeRO: give --zero 1, 2 or 3")
        return self


class EvaluationConfig(Config):
    """How often the held-out loss is measured, and on how much."""

    eval_tokens: Count = option(8192, "held-out tokens to measure models on", ge=1)
    eval_every: Count | None = option(None, "tokens between evaluations [default: a tenth of --tokens]", ge=1)


class GrowthConfig(Config):
    """Inheritune (arXiv 2404.08634)."""

    grow_from: int | None = option(None, "Inheritune: start from --student's first layers", ge=1)
    grow_by: int = option(2, "Inheritune: layers added when the loss is above the reference", ge=1)
    reference_loss: float | None = option(
        None, "Inheritune: validation loss to reach [default: that of all --student's layers]", gt=0
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.grow_from is None and self.reference_loss is not None:
            raise ValueError("--reference-loss belongs to growth: give --grow-from as well")
        return self


class RunConfig(Config):
    """Where a run computes and what it leaves where."""

    launcher: Literal["ray", "local"] = option("ray", "local: this process, or torchrun's, without Ray")
    workers: int = option(1, "workers of each model", ge=1)
    min_workers: int | None = option(
        None, "continue with as few as this where machines are lost [default: --workers]", ge=1
    )
    threads: int | None = option(None, "CPU threads of a worker [default: usable CPUs / workers]", ge=1)
    concurrent: int | None = option(None, "models trained at once [default: as many as fit]", ge=1)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto takes GPUs where there are any")
    address: str | None = option(None, "Ray cluster to join, e.g. auto [default: start one here]")
    storage: str | None = option(
        None, "where checkpoints go, and a copy of the run: a folder or s3://… [default: the run folder]"
    )
    tracker: Literal["none", "jsonl", "wandb"] = option("jsonl", "where metrics go beside the records")
    out: str | None = option(None, "run folder [default: runs/pretrain-TIME]")

    @property
    def numbers_of_workers(self) -> range:
        """How many workers a model may have at some time."""
        return range(self.min_workers or self.workers, self.workers + 1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"--min-workers {self.min_workers} is over --workers {self.workers}: give fewer")
        if self.min_workers is not None and self.launcher == "local":
            raise ValueError("--min-workers is for Ray, which replaces workers: leave it out with --launcher local")
        return self


class PretrainConfig(Config):
    """Everything that pretraining's result depends on, and where it is put.

    ``batch_size`` and ``learning_rate`` are None only with ``scratch``, until :meth:`of_model` has a model's own.
    """

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: TrainDataConfig = Field(default_factory=TrainDataConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    growth: GrowthConfig = Field(default_factory=GrowthConfig)
    run: RunConfig = Field(default_factory=RunConfig)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, tree: Any) -> Any:
        """Resolve the defaults that depend on other options."""
        if not isinstance(tree, dict) or not all(isinstance(part, dict) for part in tree.values()):
            return tree
        parts = {name: dict(tree.get(name, {})) for name in ("model", "batch", "optimizer", "distill")}
        is_new, has_teacher = parts["model"].get("scratch") is not None, parts["model"].get("teacher") is not None
        filled: list[tuple[str, str, Any]] = [("distill", "distill", FULL if has_teacher or not is_new else "none")]
        if not is_new:
            filled += [("batch", "batch_size", DEFAULT_BATCH_SIZE)]
            filled += [("optimizer", "learning_rate", DEFAULT_LEARNING_RATE)]
        for part, name, value in filled:
            if parts[part].get(name) is None:
                parts[part][name] = value
        return tree | parts

    @property
    def kind(self) -> str:
        """The teacher's signal: ``none``, ``full``, or one read from a logit store."""
        return self.distill.distill or FULL

    @property
    def batch_size(self) -> int:
        """Sequences of a step; 1 as long as a model from scratch has no batch yet."""
        return self.batch.batch_size or 1

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimiser step; of one sequence as long as the batch is open."""
        return self.batch_size * self.data.sequence_length

    @property
    def num_tokens(self) -> int:
        """The token budget of each model, in whole steps."""
        return self.batch.tokens // self.step_tokens * self.step_tokens

    @property
    def num_data_tokens(self) -> int:
        """Different tokens to train on."""
        given = self.batch.data_tokens
        return self.num_tokens if given is None else min(given, self.num_tokens)

    @property
    def data_sequences(self) -> int | None:
        """Different sequences to train on, of those that are prepared; None: as many as the budget takes."""
        return None if self.batch.data_tokens is None else self.num_data_tokens // self.data.sequence_length

    @property
    def total_steps(self) -> int:
        """Optimiser steps of each model."""
        return self.num_tokens // self.step_tokens

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return math.ceil(self.schedule.warmup * self.total_steps)

    @property
    def eval_steps(self) -> int:
        """Steps between two evaluations."""
        return self._steps_of(self.evaluation.eval_every)

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two checkpoints."""
        return self._steps_of(self.checkpoint.checkpoint_every)

    def _steps_of(self, tokens: int | None) -> int:
        return max(1, round((self.num_tokens / 10 if tokens is None else tokens) / self.step_tokens))

    def of_model(self, batch_size: int, learning_rate: float) -> PretrainConfig:
        """The config of one model from scratch, with its own batch and rate.

        Raises:
            ConfigError: The workers cannot share that batch, or the tokens are below one step.
        """
        return self.replace(batch_size=batch_size, learning_rate=learning_rate)

    def check_given(self) -> None:
        """Refuse a run without its inputs; a pipeline's section has neither, and a store comes from its stage before.

        Raises:
            UserError: The student or the store is missing.
        """
        if not self.model.students and not self.model.scratch:
            raise UserError(
                "--student is missing: give a winner like runs/NAME/winners/0, a model folder or a hub id; or a size "
                "to train from scratch, --scratch 20M"
            )
        if self.distill.from_store and not self.distill.store:
            raise UserError(
                f"--distill {self.kind} needs --store FOLDER: write one with python -m slm_ray.logits first"
            )

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        length = self.data.sequence_length
        for flag, given in (("--tokens", self.batch.tokens), ("--data-tokens", self.batch.data_tokens)):
            if given is not None and given < self.step_tokens:
                raise ValueError(
                    f"{flag} {given} is below one step of {self.step_tokens:,} tokens (--batch-size {self.batch_size} "
                    f"x --sequence-length {length}): give more tokens or a smaller batch"
                )
        if self.batch.data_tokens is not None and self.data.shards is not None:
            raise ValueError(
                "--data-tokens and --shards are both given: prepared shards are read whole; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        run, size = self.run, self.batch.batch_size
        for workers in reversed(run.numbers_of_workers) if size is not None else ():
            if size is not None and size % workers:
                if workers == run.workers:
                    raise ValueError(
                        f"--batch-size {size} is not divisible by --workers {workers}: give "
                        f"{-(-size // workers) * workers} or another number of workers"
                    )
                raise ValueError(
                    f"with --min-workers {run.min_workers} there may be {workers} workers, by which --batch-size "
                    f"{size} is not divisible: every number up to --workers {run.workers} must divide it"
                )
            micro = self.batch.micro_batch
            if size is not None and isinstance(micro, int) and size // workers % micro:
                by = f"--workers {workers}" if workers == run.workers else f"{workers} workers"
                raise ValueError(
                    f"--micro-batch {micro} must divide a worker's {size // workers} sequences (--batch-size {size} / "
                    f"{by})"
                )
        if run.launcher == "local" and self.data.shards is None:
            raise ValueError(
                "--launcher local runs without Ray, which prepares the tokens: give --shards FOLDER, prepared by an "
                "earlier run"
            )
        return self

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        name, zero = self.optimizer.optimizer, self.engine.zero
        if zero and name not in ELEMENTWISE:
            allowed = " or ".join(sorted(ELEMENTWISE))
            raise ValueError(
                f"--optimizer {name} needs whole matrices, which ZeRO {zero} shards: use --zero 0, or {allowed}"
            )
        if self.model.scratch and self.optimizer.learning_rate is None and name not in _AS_ADAMW:
            raise ValueError(
                f"--optimizer {name} needs --learning-rate: the ladder's rates are for {' and '.join(_AS_ADAMW)} "
                "(lion's authors advise 3 to 10 times less)"
            )
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        if self.model.scratch and self.kind != "none" and self.model.teacher is None:
            raise ValueError(
                f"--distill {self.kind} needs a teacher: give --teacher, whose tokenizer the new models then have"
            )
        return self

    @model_validator(mode="after")
    def _check_growth(self) -> Self:
        if self.growth.grow_from is None:
            return self
        if self.model.scratch:
            raise ValueError("--grow-from takes existing weights, and --scratch starts without: leave one out")
        if self.model.compare or len(self.model.students) > 1 or self.model.starts != ("student",):
            raise ValueError("--grow-from takes one --student and no other start: leave out --compare and --start")
        if len(self.batch.seed) > 1:
            seeds = ",".join(map(str, self.batch.seed))
            raise ValueError(f"--grow-from grows one model: give one --seed instead of {seeds}")
        if self.distill.from_store:
            raise ValueError("--grow-from trains with --distill none or full, for as many stages as it needs")
        return self
