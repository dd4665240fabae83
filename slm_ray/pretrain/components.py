"""The components of pretraining's options, each the config of one part of the package.

Those of the learning-rate schedule and of checkpoints are declared beside their code. The others are here because their
code needs torch, and a mistyped option is refused before that is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from slm_ray.config.base import Config, Count, Names, Numbers, option
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.units import format_count, parse_number

STARTS = ("student", "random", "first-n", "random-subnet")
COMPARED_STARTS = ("student", "random", "first-n")
SCRATCH = "scratch"
AUTO = "auto"


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
        None, "sequences per forward pass of a worker, or auto: as many as fit on the GPU [default: its whole share; "
        "on a CPU 2,048 tokens]"
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
    threads: int | None = option(None, "CPU threads of a worker [default: usable CPUs / workers]", ge=1)
    concurrent: int | None = option(None, "models trained at once [default: as many as fit]", ge=1)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto takes GPUs where there are any")
    address: str | None = option(None, "Ray cluster to join, e.g. auto [default: start one here]")
    storage: str | None = option(
        None, "where checkpoints go, and a copy of the run: a folder or s3://… [default: the run folder]"
    )
    tracker: Literal["none", "wandb"] = option("none", "where metrics go beside the records")
    out: str | None = option(None, "run folder [default: runs/pretrain-TIME]")
