"""The options of the comparison."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from slm_ray.config.base import Config, Count, Names, add_flags, build_config, flag_of, flatten, option
from slm_ray.config.errors import unknown_name
from slm_ray.config.parser import Parser
from slm_ray.models.bundled import BUNDLED_NAME

OURS, OURS_CUT, MINITRON, SHORTGPT, RANDOM, FIRST_N = "ours", "ours-cut", "minitron", "shortgpt", "random", "first-n"
PEERS = (OURS, OURS_CUT, MINITRON, SHORTGPT, RANDOM, FIRST_N)
# These say how a row is made, not what is in it, so they may differ between two calls on one folder.
_MAY_CHANGE = ("out", "peers", "tokens", "threads", "run", "search_trials", "row")


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in PEERS:
            raise unknown_name("peer", name, PEERS)
    return names


def _numbers(value: object) -> object:
    return tuple(value.split(",")) if isinstance(value, str) else value


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
    rates: Annotated[tuple[float, ...], BeforeValidator(_numbers)] = option(
        (1e-4, 3e-4, 1e-3), "learning rates tried for each row"
    )
    pilot_tokens: Count = option(16384, "tokens that each rate is tried on; as many as --tokens: in full", ge=0)
    seed: int = option(0, "of the order of sequences and of random units", ge=0)
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "compute type of measuring and training")
    run: Path | None = option(None, "finished search to take our winner from [default: run one]")
    search_trials: int | None = option(None, "candidates of that search [default: its own]", ge=1)
    row: str | None = option(None, "the one row to make in this process; for the command's own use")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("tokens", "pilot_tokens"):
            if 0 < getattr(self, name) < self.step_tokens:
                raise ValueError(
                    f"{flag_of(name)} {getattr(self, name)} is below one step of {self.step_tokens:,} tokens "
                    "(--batch-size x --sequence-length): give more"
                )
        for name in ("eval_tokens", "other_tokens", "decide_tokens"):
            if getattr(self, name) < self.sequence_length:
                raise ValueError(
                    f"{flag_of(name)} {getattr(self, name)} is below one sequence of {self.sequence_length} tokens"
                )
        if self.other is not None and not self.other.is_file():
            raise ValueError(f"--other {self.other} is not a file: give a file of text")
        return self

    def fixed(self) -> dict[str, object]:
        """What must be the same for rows of one table, as JSON holds it."""
        values = flatten(self)
        # A machine's folders are no part of what was measured; the file's name tells two texts apart well enough.
        values["other"] = None if self.other is None else self.other.name
        return {name: value for name, value in values.items() if name not in _MAY_CHANGE}

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch_size * self.sequence_length


def parse(argv: Sequence[str]) -> tuple[PeerOptions, bool]:
    """The options of a command line, and whether only the table is wanted.

    Raises:
        UserError: A flag or a value is wrong.
    """
    parser = Parser(prog="python -m benchmarks.peers", formatter_class=argparse.HelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there")
    add_flags(parser, PeerOptions)
    given = vars(parser.parse_args(list(argv)))
    table = given.pop("table")
    return build_config(PeerOptions, given), table
