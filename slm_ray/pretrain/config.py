"""The options of pretraining: a tree of frozen components, which is also what a training job holds."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from slm_ray.config.base import Config
from slm_ray.config.errors import UserError
from slm_ray.data.config import TrainDataConfig
from slm_ray.distill.config import FULL, KINDS, DistillConfig
from slm_ray.pretrain.checkpoints import CheckpointConfig
from slm_ray.pretrain.components import (
    BatchConfig,
    EngineConfig,
    EvaluationConfig,
    GrowthConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from slm_ray.pretrain.schedules import ScheduleConfig

DISTILL = ("none", *KINDS)
# Used where nothing is given; with --scratch, batch and rate follow from the size.
DEFAULT_BATCH_SIZE, DEFAULT_LEARNING_RATE = 8, 1e-3
# Every element is updated by itself, so ZeRO may shard the parameters. LAMB needs the norm of a whole tensor, and Muon
# the matrix itself.
ELEMENTWISE = frozenset({"adamw", "lion"})
# Optimisers that the ladder's learning rate, which is AdamW's, is right for.
_AS_ADAMW = ("adamw", "muon")
MAY_CHANGE = (
    "workers", "threads", "concurrent", "device", "address", "tracker", "engine", "zero", "offload",
    "micro_batch", "launcher", "activation_checkpointing", "keep_last", "spike", "storage", "dtype",
)  # fmt: skip
"""Options that may be given with ``--resume``: they do not decide the result."""


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
        """The config of one model from scratch, with its own batch and rate."""
        return self.replace(batch_size=batch_size, learning_rate=learning_rate)

    def check_given(self) -> None:
        """Refuse a run without inputs; a pipeline's section has neither, and a store comes from the stage before."""
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
        workers, size, micro = self.run.workers, self.batch.batch_size, self.batch.micro_batch
        if size is not None and size % workers:
            raise ValueError(
                f"--batch-size {size} is not divisible by --workers {workers}: give {-(-size // workers) * workers} or "
                "another number of workers"
            )
        if size is not None and isinstance(micro, int) and size // workers % micro:
            raise ValueError(
                f"--micro-batch {micro} must divide a worker's {size // workers} sequences (--batch-size {size} / "
                f"--workers {workers})"
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
