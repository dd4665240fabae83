"""What all rows share: the options, the teacher, the budget and the tokens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, model_validator

from benchmarks.common import as_ids
from slm_ray.config.base import Config, Count, Names, flatten, option
from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.units import parse_number
from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards
from slm_ray.data.split import CALIBRATION, TRAIN
from slm_ray.evaluate.text import held_out_shards
from slm_ray.models.bundled import BUNDLED_NAME
from slm_ray.models.precision import DTYPES, choose_precision
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.teachers import load_teacher
from slm_ray.records.cost import num_params
from slm_ray.records.files import cache_folder, read_json, write_json
from slm_ray.runtime.progress import Console

PEERS = ("ours", "minitron", "shortgpt", "random", "first-n")
# These say how a row is made, not what is in it, so they may differ between two calls on one folder.
_MAY_CHANGE = ("out", "peers", "tokens", "threads", "run", "search_trials")


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in PEERS:
            raise unknown_name("peer", name, PEERS)
    return names


def _rates(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        parse_number(value)
    return values


class PeerOptions(Config):
    """Everything that the rows depend on."""

    out: Path = option(..., "folder of everything; rows that are there are not made again")
    peers: Annotated[Names, AfterValidator(_known)] = option(PEERS, "rows, in the order they are made")
    tokens: Count = option(100_000, "tokens that each model is trained on; 0: none", ge=0)
    threads: int = option(1, "CPU threads", ge=1)
    teacher: str = option(BUNDLED_NAME, "the teacher")
    data: str = option("python-docs", "the text that is calibrated and trained on")
    other: Path | None = option(None, "file of text that nothing is calibrated or trained on")
    share: float = option(0.5, "most parameters, as a share of the teacher's", gt=0, lt=1)
    sequence_length: int = option(512, "tokens of every sequence", ge=8)
    batch_size: int = option(4, "sequences of an optimiser step", ge=1)
    eval_tokens: Count = option(16384, "held-out tokens that models are measured on")
    other_tokens: Count = option(16384, "the same of the other text")
    decide_tokens: Count = option(4096, "calibration tokens by which a peer picks among its models and rates")
    calibration_samples: int = option(1024, "samples of train text that activations are gathered on", ge=1)
    calibration_length: int = option(64, "tokens of each", ge=1)
    rates: Annotated[Names, AfterValidator(_rates)] = option(
        ("1e-4", "3e-4", "1e-3"), "learning rates that each row is trained at; the best by calibration text is shown"
    )
    seed: int = option(0, "of the order of sequences and of random units", ge=0)
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "compute type of measuring and training")
    run: Path | None = option(None, "finished search of that budget to take our winner from [default: run one]")
    search_trials: int | None = option(None, "candidates of that search [default: its own]", ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        step = self.batch_size * self.sequence_length
        if 0 < self.tokens < step:
            raise ValueError(f"--tokens {self.tokens} is below one step of {step:,} tokens: give more")
        if self.other is not None and not self.other.is_file():
            raise ValueError(f"--other {self.other} is not a file: give a file of text")
        return self


@dataclass
class Spent:
    """What choosing a model cost: seconds on the clock, and FLOPs of matrix multiplications."""

    seconds: float = 0.0
    flops: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


class Study:
    """The teacher, the budget and the tokens of a comparison; each part is made when it is first asked for."""

    def __init__(self, options: PeerOptions) -> None:
        """Make the folder, or check that it was begun with these options."""
        self.options, self.console, self.out = options, Console(), options.out
        self.out.mkdir(parents=True, exist_ok=True)
        values = flatten(options)
        # A machine's folders are no part of what was measured; the file's name tells two texts apart well enough.
        values["other"] = None if options.other is None else options.other.name
        now = {name: value for name, value in values.items() if name not in _MAY_CHANGE}
        path = self.out / "options.json"
        before = read_json(path) if path.is_file() else now
        for name in now:
            if before.get(name) != now[name]:
                raise UserError(
                    f"{self.out} was begun with {name} {before.get(name)}, not {now[name]}: rows of one table must be "
                    "made alike; give the same, or another --out"
                )
        write_json(path, now)
        self.teacher = load_teacher(options.teacher)
        self.architecture, self.tokenizer = self.teacher.architecture(), self.teacher.tokenizer()
        self.limit = int(options.share * num_params(self.architecture))
        self.precision = choose_precision(options.precision)

    @cached_property
    def corpus(self) -> Any:
        """The text that is calibrated and trained on."""
        return load_corpus(self.options.data, "text", self.console)

    @cached_property
    def runner(self) -> SubnetRunner:
        """Runs the teacher's sub-networks in the type that is measured in."""
        state = self.teacher.state_as(DTYPES[self.precision])
        return SubnetRunner(state, self.teacher.config(), self.teacher.family())

    def _tokens(self, part: str, count: int, length: int) -> TokenShards:
        return prepare_tokens(
            self.corpus, self.tokenizer, part, num_tokens=count, console=self.console, cache=cache_folder() / "tokens",
            sequence_length=length,
        )  # fmt: skip

    def train_ids(self, count: int, length: int) -> torch.Tensor:
        """``[sequences, length]`` train tokens."""
        return as_ids(self._tokens(TRAIN, count, length))

    def training_shards(self, tokens: int) -> Path:
        """A folder of so many train tokens, or of fewer where the text has not so many: they are then read again."""
        for share in (1.0, 0.9, 0.75, 0.5, 0.25, 0.1):
            try:
                return self._tokens(TRAIN, int(tokens * share), self.options.sequence_length).folder.resolve()
            except UserError as error:
                reason = error
        raise reason

    @cached_property
    def deciding(self) -> TokenShards:
        """Calibration tokens by which models and rates are chosen."""
        return self._tokens(CALIBRATION, self.options.decide_tokens, self.options.sequence_length)

    @property
    def deciding_ids(self) -> torch.Tensor:
        """The same as ``[sequences, length]``."""
        return as_ids(self.deciding)

    @cached_property
    def texts(self) -> dict[str, TokenShards]:
        """Held-out tokens by the name of their text: the one calibrated on, and the other one."""
        options = self.options
        corpora = {options.data: (self.corpus, options.eval_tokens)}
        if options.other:
            other = load_corpus(str(options.other), "text", self.console)
            corpora[options.other.stem] = (other, options.other_tokens)
        return {
            name: held_out_shards(
                corpus, self.tokenizer, eval_tokens=tokens, sequence_length=options.sequence_length, num_bytes=None,
                console=self.console,
            )
            for name, (corpus, tokens) in corpora.items()
        }  # fmt: skip
