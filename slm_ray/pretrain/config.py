"""The options of pretraining."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.options import at_least, option
from slm_ray.config.units import format_count, parse_number
from slm_ray.data import DEFAULT_CORPUS
from slm_ray.distill.losses import DIVERGENCES, Divergence
from slm_ray.models.scratch import POSITIONS, ROTARY
from slm_ray.pretrain.job import AUTO
from slm_ray.pretrain.optimizers import ELEMENTWISE, OPTIMIZERS
from slm_ray.pretrain.schedules import SCHEDULES, WEIGHT_SCHEDULES

STARTS = ("student", "random", "first-n", "random-subnet")
COMPARED_STARTS = ("student", "random", "first-n")
SCRATCH = "scratch"
DISTILL = ("none", "full", "top-k", "top-k-tail", "sampled")
FROM_STORE = ("top-k", "top-k-tail", "sampled")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# What is meant where nothing is given; with --scratch, batch and rate follow from the size.
DEFAULTS: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-3, "distill": "full"}
# Optimisers that the ladder's learning rate, which is AdamW's, is right for.
_AS_ADAMW = ("adamw", "muon")


def _share(value: float) -> str | None:
    return None if 0 <= value <= 1 else f"must lie between 0 and 1, got {value:g}"


def _above_zero(value: float) -> str | None:
    return None if value > 0 else f"must be above 0, got {value:g}"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that pretraining's result depends on, and where it is put."""

    student: str = option(
        None, "model folder, .gguf file or hub id to train, or smollm2-135m; several with commas", kind=str
    )
    scratch: str = option(
        None, "instead of --student: models from nothing with about so many parameters, e.g. 20M; several with commas",
        kind=str, metavar="SIZES",
    )  # fmt: skip
    positions: str = option(ROTARY, "--scratch: how tokens know their places", choices=POSITIONS)
    tokenizer: str = option(
        None, "--scratch: folder, hub id, or train:SIZE on --data [default: the teacher's, else smollm2-135m's]",
        kind=str,
    )  # fmt: skip
    start: str = option("student", f"whose weights to start from; several with commas: {', '.join(STARTS)}")
    compare: bool = option(False, "train student, random and first-n starts and compare them")
    teacher: str = option(None, "hub id, folder or .gguf file [default: what the student was cut from]", kind=str)
    data: str = option(DEFAULT_CORPUS, "corpus: python-docs, python-docs-full, a file or folder, or a hub id")
    text_field: str = option("text", "field of the text in JSONL, parquet and hub corpora")
    shards: str = option(None, "folder of token shards prepared before, instead of --data's train part", kind=str)
    tokens: str = option("20M", "tokens to train each model on, e.g. 300k or 20M", metavar="COUNT")
    data_tokens: str = option(
        None, "different tokens of --data to train on, read again and again [default: as many as --tokens]", kind=str
    )
    sequence_length: int = option(512, "tokens per sequence", check=at_least(8))
    documents: str = option("separate", "attention stays inside a document, or not", choices=("separate", "joined"))
    batch_size: int = option(
        None, "sequences of one optimiser step, over all workers [default: 8; with --scratch by size and tokens]",
        check=at_least(1), kind=int,
    )  # fmt: skip
    micro_batch: str = option(
        None, "sequences at once in a worker, or auto [default: its share of a batch; on a CPU 2,048 tokens]", kind=str
    )
    seed: str = option("0", "seed of weights and order; several with commas", metavar="SEEDS")
    distill: str = option(
        None, "the teacher's signal [default: full; none with --scratch and no --teacher]", choices=DISTILL, kind=str
    )
    store: str = option(None, "logit store to distill from (python -m slm_ray.logits)", kind=str)
    loss: str = option("forward_kl", "divergence from the teacher", choices=DIVERGENCES)
    temperature: float = option(1.0, "temperature of the divergence", check=_above_zero)
    kd_weight: float = option(0.7, "weight of the divergence; cross-entropy gets the rest", check=_share)
    kd_schedule: str = option("constant", "how that weight moves", choices=WEIGHT_SCHEDULES)
    optimizer: str = option("adamw", "optimiser", choices=OPTIMIZERS)
    learning_rate: float = option(
        None, "peak learning rate [default: 0.001; with --scratch by size and batch]", check=_above_zero,
        kind=float,
    )  # fmt: skip
    schedule: str = option("cosine", "learning-rate schedule", choices=SCHEDULES)
    warmup: float = option(0.1, "share of the steps in which the rate rises", check=_share)
    floor: float = option(0.1, "lowest rate at the end, as a share of the peak", check=_share)
    weight_decay: float = option(0.1, "decoupled weight decay of matrices", check=at_least(0))
    beta1: float = option(0.9, "first beta of the optimiser", check=_share)
    beta2: float = option(0.95, "second beta of the optimiser", check=_share)
    clip: float = option(1.0, "largest norm of the gradient; 0 clips nothing", check=at_least(0))
    precision: str = option("auto", "compute type; auto: bf16 where the processor has it", choices=PRECISIONS)
    engine: str = option("deepspeed", "what runs the steps", choices=("deepspeed", "torch"))
    zero: int = option(0, "DeepSpeed ZeRO stage: 0, 1, 2 or 3", check=at_least(0))
    offload: bool = option(False, "keep optimiser state in CPU memory (ZeRO 1 to 3)")
    activation_checkpointing: bool = option(False, "compute activations again in the backward pass")
    eval_tokens: int = option(8192, "held-out tokens that models are measured on", check=at_least(1))
    eval_every: str = option(None, "tokens between evaluations [default: a tenth of --tokens]", kind=str)
    checkpoint_every: str = option(None, "tokens between checkpoints [default: a tenth of --tokens]", kind=str)
    keep_last: int = option(2, "newest checkpoints to keep, beside the best", check=at_least(1))
    spike: float = option(3.0, "nats above the recent mean loss that stop a run; 0: never", check=at_least(0))
    grow_from: int = option(None, "Inheritune: start from --student's first layers", check=at_least(1), kind=int)
    grow_by: int = option(2, "Inheritune: layers added when the loss is above the reference", check=at_least(1))
    reference_loss: float = option(
        None, "Inheritune: validation loss to reach [default: that of all --student's layers]", check=_above_zero,
        kind=float,
    )  # fmt: skip
    launcher: str = option("ray", "local: this process, or torchrun's, without Ray", choices=("ray", "local"))
    workers: int = option(1, "workers of each model", check=at_least(1))
    min_workers: int = option(None, "go on with so few where machines are lost [default: --workers]",
                              check=at_least(1), kind=int)  # fmt: skip
    threads: int = option(None, "CPU threads of a worker [default: usable CPUs / workers]", check=at_least(1), kind=int)
    concurrent: int = option(None, "models trained at once [default: as many as fit]", check=at_least(1), kind=int)
    device: str = option("auto", "auto takes GPUs where there are any", choices=("auto", "cpu", "cuda"))
    address: str = option(None, "Ray cluster to join, e.g. auto [default: start one here]", kind=str)
    storage: str = option(
        None, "where checkpoints go, and a copy of the run: a folder or s3://… [default: the run folder]", kind=str
    )
    tracker: str = option("jsonl", "where metrics go beside the records", choices=("none", "jsonl", "wandb"))
    out: str = option(None, "run folder [default: runs/pretrain-TIME]", kind=str)

    def __post_init__(self) -> None:
        """Fill in what was not given; batch and rate of ``scratch`` stay open until the model's size is known."""
        open_yet = ("batch_size", "learning_rate") if self.scratch else ()
        values = DEFAULTS | ({} if not self.scratch or self.teacher else {"distill": "none"})
        for name, value in values.items():
            if getattr(self, name) is None and name not in open_yet:
                object.__setattr__(self, name, value)

    def num_tokens(self) -> int:
        """The token budget of each model, whole steps (whole sequences as long as the batch is open).

        Raises:
            UserError: It is not a count, or is below one step.
        """
        wanted, step = int(parse_number(self.tokens)), self.step_tokens
        if wanted < step:
            raise UserError(
                f"--tokens {self.tokens} is below one step of {step:,} tokens (--batch-size {self.batch_size or 1} x "
                f"--sequence-length {self.sequence_length}): give more tokens or a smaller batch"
            )
        return wanted // step * step

    def num_data_tokens(self) -> int:
        """Different tokens to train on: what the corpus is asked for.

        Raises:
            UserError: It is not a count, or is below one step.
        """
        if self.data_tokens is None:
            return self.num_tokens()
        wanted = int(parse_number(self.data_tokens))
        if wanted < self.step_tokens:
            raise UserError(
                f"--data-tokens {self.data_tokens} is below one step of {self.step_tokens:,} tokens: give more tokens "
                "or a smaller batch"
            )
        return min(wanted, self.num_tokens())

    def data_sequences(self) -> int | None:
        """Different sequences to train on, of those that are prepared; None: whatever the tokens to train on take."""
        return None if self.data_tokens is None else self.num_data_tokens() // self.sequence_length

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimiser step; of one sequence as long as the batch is open."""
        return (self.batch_size or 1) * self.sequence_length

    def total_steps(self) -> int:
        """Optimiser steps of each model."""
        return self.num_tokens() // self.step_tokens

    def every_steps(self, name: str) -> int:
        """Steps between two evaluations or checkpoints; ``name`` is the option.

        Raises:
            UserError: It is not a count.
        """
        value = getattr(self, name)
        tokens = self.num_tokens() / 10 if value is None else parse_number(value)
        return max(1, round(tokens / self.step_tokens))

    def seeds(self) -> tuple[int, ...]:
        """The seeds.

        Raises:
            UserError: One is not a whole number.
        """
        try:
            found = tuple(int(part) for part in self.seed.split(","))
        except ValueError as error:
            raise UserError(f"--seed '{self.seed}' must be whole numbers with commas, like 0,1,2") from error
        if min(found) < 0:
            raise UserError(f"--seed must be at least 0, got {min(found)}")
        return tuple(dict.fromkeys(found))

    def starts(self) -> tuple[str, ...]:
        """The starts to train.

        Raises:
            UserError: A name is unknown.
        """
        if self.scratch:
            return (SCRATCH,)
        if self.compare:
            return COMPARED_STARTS
        names = tuple(dict.fromkeys(part.strip() for part in self.start.split(",")))
        for name in names:
            if name not in STARTS:
                raise unknown_name("start", name, STARTS)
        return names

    def students(self) -> tuple[str, ...]:
        """The folders or hub ids of the students.

        Raises:
            UserError: None was given.
        """
        names = tuple(dict.fromkeys(part.strip() for part in (self.student or "").split(",") if part.strip()))
        if not names:
            raise UserError(
                "--student is missing: give a winner like runs/NAME/winners/0, a model folder or a hub id; or a size "
                "to train from nothing, --scratch 20M"
            )
        return names

    def scratch_sizes(self) -> dict[str, int]:
        """Parameters of the models from nothing by their label, such as ``20M``; empty without ``scratch``.

        Raises:
            UserError: One is no count.
        """
        parts = [part.strip() for part in (self.scratch or "").split(",") if part.strip()]
        try:
            counts = [int(parse_number(part)) for part in parts if "%" not in part]
        except UserError:
            counts = []
        if len(counts) < len(parts) or (self.scratch is not None and not parts):
            raise UserError(f"--scratch '{self.scratch}' must be parameters like 20M, or several with commas")
        return {format_count(count) if float(count) == parse_number(format_count(count)) else str(count): count
                for count in counts}  # fmt: skip

    def micro_batch_size(self) -> int | None:
        """Sequences at once in a worker; ``AUTO`` where it is to be found, None where nothing is said.

        Raises:
            UserError: It is no number, or does not divide a worker's share.
        """
        if self.micro_batch is None:
            return None
        if self.micro_batch == "auto":
            return AUTO
        try:
            size = int(self.micro_batch)
        except ValueError as error:
            raise UserError(f"--micro-batch '{self.micro_batch}' must be a whole number or auto") from error
        for workers in self.numbers_of_workers():
            share = size if self.batch_size is None else self.batch_size // workers
            if size < 1 or share % size:
                raise UserError(
                    f"--micro-batch {size} must divide a worker's {share} sequences (--batch-size {self.batch_size} / "
                    f"{f'--workers {workers}' if workers == self.workers else f'{workers} workers'})"
                )
        return size

    def check(self) -> None:
        """Check everything that needs no files.

        Raises:
            UserError: Two options do not go together.
        """
        if self.scratch is None:
            self._check_no_scratch()
        else:
            self._check_scratch()
        self.starts(), self.seeds(), self.num_tokens(), self.num_data_tokens()
        if self.data_tokens is not None and self.shards is not None:
            raise UserError("--data-tokens and --shards are both given: prepared shards are read whole; leave one out")
        for name in ("eval_every", "checkpoint_every"):
            self.every_steps(name)
        self._check_workers()
        self.micro_batch_size()
        self._check_engine()
        self._check_distill()
        self._check_growth()

    def numbers_of_workers(self) -> range:
        """How many workers a model may have at some time."""
        return range(self.min_workers or self.workers, self.workers + 1)

    def _check_workers(self) -> None:
        if self.batch_size is not None and self.batch_size % self.workers:
            raise UserError(
                f"--batch-size {self.batch_size} is not divisible by --workers {self.workers}: give "
                f"{-(-self.batch_size // self.workers) * self.workers} or another number of workers"
            )
        if self.min_workers is None:
            return
        if self.min_workers > self.workers:
            raise UserError(f"--min-workers {self.min_workers} is over --workers {self.workers}: give fewer")
        if self.launcher == "local":
            raise UserError("--min-workers is for Ray, which replaces workers: leave it out with --launcher local")
        wrong = [number for number in self.numbers_of_workers() if self.batch_size and self.batch_size % number]
        if wrong:
            raise UserError(
                f"with --min-workers {self.min_workers} there may be {wrong[0]} workers, by which --batch-size "
                f"{self.batch_size} is not divisible: every number up to --workers {self.workers} must divide it"
            )

    def _check_no_scratch(self) -> None:
        self.students()
        for name, default in (("positions", ROTARY), ("tokenizer", None)):
            if getattr(self, name) != default:
                raise UserError(
                    f"--{name} {getattr(self, name)} belongs to --scratch: a --student has its own; leave it out"
                )

    def _check_scratch(self) -> None:
        self.scratch_sizes()
        if self.student is not None:
            raise UserError("--student and --scratch are both given: train models that are there, or new ones")
        if self.compare or self.start != "student" or self.grow_from is not None:
            flag = "--compare" if self.compare else "--grow-from" if self.grow_from is not None else "--start"
            raise UserError(f"{flag} takes weights that are there, and --scratch starts from nothing: leave one out")
        if self.distill != "none" and self.teacher is None:
            raise UserError(
                f"--distill {self.distill} needs a teacher: give --teacher, whose tokenizer the new models then have"
            )
        if self.learning_rate is None and self.optimizer not in _AS_ADAMW:
            raise UserError(
                f"--optimizer {self.optimizer} needs --learning-rate: the ladder's rates are for "
                f"{' and '.join(_AS_ADAMW)} (lion's authors advise 3 to 10 times less)"
            )

    def _check_engine(self) -> None:
        if self.zero > 3:
            raise UserError(f"--zero must be 0, 1, 2 or 3, got {self.zero}")
        if self.engine == "torch" and (self.zero or self.offload):
            raise UserError("--zero and --offload are DeepSpeed's: leave out --engine torch")
        if self.zero and self.optimizer not in ELEMENTWISE:
            allowed = " or ".join(sorted(ELEMENTWISE))
            raise UserError(
                f"--optimizer {self.optimizer} needs whole matrices, which ZeRO {self.zero} cuts up: use --zero 0, "
                f"or {allowed}"
            )
        if self.offload and not self.zero:
            raise UserError("--offload needs ZeRO: give --zero 1, 2 or 3")

    def _check_distill(self) -> None:
        if self.distill in FROM_STORE and not self.store:
            raise UserError(
                f"--distill {self.distill} needs --store FOLDER: write one with python -m slm_ray.logits first"
            )
        if self.distill != "none":
            Divergence(name=self.loss, temperature=self.temperature).check(self.distill)
        if self.store and self.distill not in FROM_STORE:
            raise UserError(f"--store is given, but --distill {self.distill} reads none: give --distill top-k")

    def _check_growth(self) -> None:
        if self.grow_from is None:
            if self.reference_loss is not None:
                raise UserError("--reference-loss belongs to growth: give --grow-from as well")
            return
        if self.compare or len(self.students()) > 1 or self.starts() != ("student",):
            raise UserError("--grow-from takes one --student and no other start: leave out --compare and --start")
        if len(self.seeds()) > 1:
            raise UserError(f"--grow-from grows one model: give one --seed instead of {self.seed}")
        if self.distill in FROM_STORE:
            raise UserError("--grow-from trains with --distill none or full, for as many stages as it needs")

    def to_json(self) -> dict[str, Any]:
        """The options as config.json holds them."""
        return dataclasses.asdict(self)


def default_out(stamp: str) -> Path:
    """The run folder when none is given: ``runs/pretrain-STAMP``."""
    return Path("runs") / f"pretrain-{stamp}"
