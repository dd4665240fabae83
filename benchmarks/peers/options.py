"""The options of the comparison."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.units import parse_number
from slm_ray.models.bundled import BUNDLED_NAME

OURS, OURS_CUT, MINITRON, SLICEGPT, SHORTGPT = "ours", "ours-cut", "minitron", "slicegpt", "shortgpt"
RANDOM, FIRST_N, WHITTLE = "random", "first-n", "whittle"
PEERS = (OURS, OURS_CUT, MINITRON, SLICEGPT, SHORTGPT, RANDOM, FIRST_N, WHITTLE)
# Say how a row is made, not what is in it, so they may differ between two calls on one folder.
_MAY_CHANGE = ("out", "peers", "tokens", "threads", "run", "search_trials", "row")


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """Everything that the rows depend on.

    Attributes:
        out: Where everything goes.
        peers: The rows, in the order they are made.
        tokens: Tokens that each model is trained on; 0 trains none.
        threads: CPU threads.
        teacher: The teacher.
        data: The text that is calibrated and trained on.
        other: A file of text that nothing is calibrated or trained on; None for none.
        share: Most parameters, as a share of the teacher's.
        sequence_length: Tokens of every sequence.
        batch_size: Sequences of an optimiser step.
        eval_tokens: Held-out tokens that models are measured on.
        other_tokens: The same of the other text.
        decide_tokens: Calibration tokens by which a peer picks among its own models, and a learning rate.
        calibration_samples: Samples of train text that activations are gathered on.
        calibration_length: Tokens of each.
        rates: Learning rates that are tried for every row.
        pilot_tokens: Tokens that each rate is tried on; as many as ``tokens`` train every row at every rate.
        seed: Of the order of sequences and of random units.
        precision: Compute type of measuring and training.
        run: A finished search to take our winner from; None runs one.
        search_trials: Candidates of that search; None: as many as it measures by default.
        whittle_candidates: Candidates of whittle's own search.
        whittle_tokens: Tokens that it measures each of them on.
        row: The one row to make in this process; for the command's own use.
    """

    out: Path
    peers: tuple[str, ...] = PEERS
    tokens: int = 100_000
    threads: int = 1
    teacher: str = BUNDLED_NAME
    data: str = "python-docs"
    other: str | None = None
    share: float = 0.5
    sequence_length: int = 512
    batch_size: int = 4
    eval_tokens: int = 16384
    other_tokens: int = 16384
    decide_tokens: int = 4096
    calibration_samples: int = 1024
    calibration_length: int = 64
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    pilot_tokens: int = 16384
    seed: int = 0
    precision: str = "auto"
    run: Path | None = None
    search_trials: int | None = None
    whittle_candidates: int = 40
    whittle_tokens: int = 2048
    row: str | None = None

    def fixed(self) -> dict[str, object]:
        """What must be the same for rows of one table, as JSON holds it."""
        values = dataclasses.asdict(self)
        # A machine's folders are no part of what was measured; the file's name tells two texts apart well enough.
        values["other"] = None if self.other is None else Path(self.other).name
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in values.items() if name not in _MAY_CHANGE}  # fmt: skip

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch_size * self.sequence_length


def whole_number(text: str) -> int:
    """A count such as ``100k``.

    Raises:
        UserError: It is none.
    """
    return int(parse_number(text))


def names(text: str) -> tuple[str, ...]:
    """Rows with commas between.

    Raises:
        UserError: One is unknown.
    """
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in found:
        if name not in PEERS:
            raise unknown_name("peer", name, PEERS)
    return found


def parser() -> argparse.ArgumentParser:
    """The command line; every field of the options is a flag."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    add = made.add_argument
    add("--out", type=Path, required=True, help="folder of everything; rows that are there are not made again")
    add("--table", action="store_true", help="print the table of what is there, and make nothing")
    add("--peers", default=",".join(PEERS), help="rows, in the order they are made [default: %(default)s]")
    add("--tokens", default="100k", help="tokens that each model is trained on; 0: none [default: %(default)s]")
    add("--rates", default="1e-4,3e-4,1e-3", help="learning rates tried for each row [default: %(default)s]")
    add("--other", default=None, help="file of text that nothing is calibrated or trained on")
    add("--run", type=Path, default=None, help="finished search to take our winner from [default: run one]")
    add("--search-trials", type=int, default=None, help="candidates of that search [default: its own]")
    add("--row", default=None, help=argparse.SUPPRESS)
    for name, kind in (("teacher", str), ("data", str), ("share", float), ("precision", str)):
        add(f"--{name}", type=kind, default=getattr(PeerOptions, name), help="[default: %(default)s]")
    for name in ("threads", "sequence_length", "batch_size", "eval_tokens", "other_tokens", "decide_tokens",
                 "calibration_samples", "calibration_length", "pilot_tokens", "seed", "whittle_candidates",
                 "whittle_tokens"):  # fmt: skip
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(PeerOptions, name), help="[default: %(default)s]")
    return made


def from_arguments(given: argparse.Namespace) -> PeerOptions:
    """The options of a parsed command line.

    Raises:
        UserError: A value is not one, or two do not go together.
    """
    values = {name: value for name, value in vars(given).items() if name != "table"}
    values |= {"peers": names(given.peers), "tokens": whole_number(given.tokens)}
    try:
        values["rates"] = tuple(float(part) for part in given.rates.split(","))
    except ValueError as error:
        raise UserError(f"--rates '{given.rates}' must be numbers with commas, like 1e-4,1e-3") from error
    options = PeerOptions(**values)
    check(options)
    return options


def check(options: PeerOptions) -> None:
    """Make sure that the options go together.

    Raises:
        UserError: They do not.
    """
    if not 0 < options.share < 1:
        raise UserError(f"--share must lie between 0 and 1, got {options.share:g}")
    for name in ("tokens", "pilot_tokens"):
        value = getattr(options, name)
        if 0 < value < options.step_tokens or value < 0:
            raise UserError(
                f"--{name.replace('_', '-')} {value} is below one step of {options.step_tokens:,} tokens "
                "(--batch-size x --sequence-length): give more"
            )
    for name in ("eval_tokens", "other_tokens", "decide_tokens"):
        if getattr(options, name) < options.sequence_length:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(options, name)} is below one sequence of "
                f"--sequence-length {options.sequence_length}"
            )
    if options.other is not None and not Path(options.other).is_file():
        raise UserError(f"--other {options.other} is no file: give a file of text")
