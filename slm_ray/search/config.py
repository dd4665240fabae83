"""The options of a search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.options import at_least, option
from slm_ray.config.units import parse_number
from slm_ray.data import DEFAULT_CORPUS
from slm_ray.models.bundled import BUNDLED_NAME
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import Budget, parse_budget
from slm_ray.runtime.storage import STORAGE_HELP
from slm_ray.search.algorithms import ALGORITHMS, SCREENED
from slm_ray.search.registry import PROXIES, parse_objectives
from slm_ray.search.space import ORDERS

DEFAULT_BUDGET = "0.45..0.7"
_SCREEN = 4  # of nsga2; no gain was measured for others
RECONSTRUCT = ("none", "winners", "all")


def _known_algorithm(name: str) -> str | None:
    return None if name in ALGORITHMS else str(unknown_name("algorithm", name, ALGORITHMS))


def _enough_steps(value: int) -> str | None:
    return None if value == 1 or value >= 3 else f"must be 1 (one-shot), or 3 or more to learn in, got {value}"


def _share(value: float) -> str | None:
    return None if 0 <= value <= 0.9 else f"must lie between 0 and 0.9, got {value:g}"


def _in_confidence_range(value: float) -> str | None:
    return None if 0.5 < value < 1 else f"must lie between 0.5 and 1, got {value:g}"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Everything a search's result depends on, and where it is put."""

    space: str = option("fine", "search space: a name in search_spaces/ or a YAML file")
    teacher: str = option(BUNDLED_NAME, "hub id, model folder, .gguf file, or the bundled default")
    data: str = option(DEFAULT_CORPUS, "corpus: python-docs, python-docs-full, a file or folder, or a hub id")
    text_field: str = option("text", "field of the text in JSONL, parquet and hub corpora")
    params: str = option(None, f"parameter budget: 0.5, 60M, 60M..70M [default: {DEFAULT_BUDGET}]", kind=str)
    flops: str = option(None, "FLOPs/token budget instead of --params", kind=str)
    kv_bytes: str = option(None, "KV-cache bytes/token budget instead of --params", kind=str)
    objectives: str = option("perplexity,params", "a proxy, and a cost unless the algorithm is ga")
    algorithm: str = option("nsga2", "search algorithm", check=_known_algorithm)
    trials: int = option(80, "candidates to measure", check=at_least(1))
    population: int = option(24, "population and generation size", check=at_least(4))
    screen: int = option(
        None, "offspring per candidate measured, of which a regression picks; 1: no screening [default: 4 for nsga2, "
        "else 1]", check=at_least(1), kind=int,
    )  # fmt: skip
    seed: int = option(0, "seed of all randomness", check=at_least(0))
    order: str = option(None, "unit order instead of the space file's", choices=ORDERS, kind=str)
    importance_steps: int = option(24, "steps that Taylor scores are learned in; 1: one-shot", check=_enough_steps)
    importance_tokens: int = option(2048, "tokens of each importance step", check=at_least(1))
    calibration_tokens: int = option(8192, "tokens that candidates are measured on", check=at_least(1))
    held_out_tokens: int = option(8192, "tokens that the front is measured on", check=at_least(1))
    other_data: str = option(
        None, "corpus of another kind, to see what winners are worth on it; it decides nothing", kind=str
    )
    other_tokens: int = option(8192, "tokens of it that they are measured on", check=at_least(1))
    sequence_length: int = option(512, "tokens per sequence", check=at_least(8))
    stages: str = option("512,2048", "tokens after which a beaten candidate is stopped; 'none' measures all in full")
    confidence: float = option(
        0.6, "one-sided confidence that a stopped candidate is beaten", check=_in_confidence_range
    )
    precision: str = option(
        "auto", "compute type; auto: bf16 where products in it are found faster", choices=("auto", "fp32", "bf16")
    )
    audit: int = option(
        6, "stopped candidates to measure to the end, to see what shortcuts got wrong; 0: none", check=at_least(0)
    )
    finalists: int = option(0, "members of the front to train shortly before winners are picked", check=at_least(0))
    finalist_tokens: str = option("16k", "tokens that each finalist is trained on", metavar="COUNT")
    winners: int = option(3, "models to extract from the front", check=at_least(1))
    reconstruct: str = option(
        "winners", "whose weights are fitted to the teacher's layers after the search", choices=RECONSTRUCT
    )
    reconstruct_tokens: int = option(40960, "tokens they are fitted on, or all the train part has", check=at_least(1))
    teacher_text: float = option(
        0.2, "share of the tokens that weights are fitted on which the teacher writes itself, 0 to 0.9", check=_share
    )
    device: str = option(
        "auto",
        "what candidates and unit scores are computed on; auto: a GPU where there is one",
        choices=("auto", "cpu", "cuda"),
    )
    workers: int = option(
        None, "trials at once [default: usable CPUs / threads, two for a GPU]", check=at_least(1), kind=int
    )
    threads: int = option(1, "threads per trial", check=at_least(1))
    address: str = option(None, "Ray cluster to join, e.g. auto [default: start one here]", kind=str)
    storage: str = option(None, STORAGE_HELP, kind=str)
    tracker: str = option("jsonl", "where metrics go beside the records", choices=("none", "jsonl", "wandb"))
    out: str = option(None, "run folder [default: runs/SPACE-TIME]", kind=str)

    def stage_tokens(self) -> tuple[int, ...]:
        """Where early stages end, in tokens.

        Raises:
            UserError: ``--stages`` is not ascending numbers or ``none``.
        """
        if self.stages.strip().lower() == "none":
            return ()
        try:
            ends = tuple(int(parse_number(part)) for part in self.stages.split(","))
        except UserError as error:
            raise UserError(
                f"--stages '{self.stages}' must be ascending token counts like 512,2048, or none"
            ) from error
        if list(ends) != sorted(set(ends)) or ends[0] < 1:
            raise UserError(f"--stages '{self.stages}' must be ascending token counts like 512,2048, or none")
        return ends

    def screen_factor(self) -> int:
        """How many offspring are made for each candidate that is measured."""
        if self.screen is None:
            return _SCREEN if self.algorithm == "nsga2" else 1
        return self.screen

    def objective_names(self) -> tuple[str, ...]:
        """The objectives, checked against the algorithm.

        Raises:
            UserError: A name is unknown, or the algorithm takes another number of objectives.
        """
        names = parse_objectives(self.objectives)
        if self.algorithm == "ga" and len(names) != 1:
            raise UserError(
                f"--algorithm ga takes one objective, got '{self.objectives}': give e.g. --objectives perplexity"
            )
        if self.algorithm == "nsga2" and len(names) != 2:
            raise UserError(
                f"--algorithm nsga2 takes two objectives, got '{self.objectives}': give e.g. perplexity,params"
            )
        return names

    def budget(self, teacher: Architecture) -> Budget:
        """The one budget that was given, or the default one.

        Raises:
            UserError: More than one was given, or it cannot be read.
        """
        given = {
            name: getattr(self, name) for name in ("params", "flops", "kv_bytes") if getattr(self, name) is not None
        }
        if len(given) > 1:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(f"{flags} are both given: a search has one budget; leave one out")
        name, text = next(iter(given.items()), ("params", DEFAULT_BUDGET))
        return parse_budget(name, str(text), teacher, self.sequence_length)

    def needed_proxies(self) -> tuple[str, ...]:
        """The objectives that have to be measured."""
        return tuple(name for name in self.objective_names() if name in PROXIES)

    def to_json(self) -> dict[str, Any]:
        """The options as config.json holds them."""
        return dataclasses.asdict(self)

    def check(self) -> None:
        """Check everything that needs no files.

        Raises:
            UserError: Two options do not go together.
        """
        self.objective_names()
        self.stage_tokens()
        if self.calibration_tokens < self.sequence_length or self.held_out_tokens < self.sequence_length:
            raise UserError(
                f"--calibration-tokens {self.calibration_tokens} and --held-out-tokens {self.held_out_tokens} must "
                f"each be at least one sequence of --sequence-length {self.sequence_length}"
            )
        if self.other_data and self.other_tokens < self.sequence_length:
            raise UserError(
                f"--other-tokens {self.other_tokens} is below one sequence: give {self.sequence_length:,} or more"
            )
        if self.screen_factor() > 1 and self.algorithm not in SCREENED:
            raise UserError(
                f"--screen {self.screen} picks among offspring, and --algorithm {self.algorithm} makes none: leave it "
                f"out, or use {' or '.join(SCREENED)}"
            )
        self._check_finalists()

    def _check_finalists(self) -> None:
        if not self.finalists:
            return
        if self.finalists < self.winners:
            raise UserError(
                f"--finalists {self.finalists} is below --winners {self.winners}, which are picked from them: give "
                f"{self.winners} or more"
            )
        if parse_number(self.finalist_tokens) < self.sequence_length:
            raise UserError(
                f"--finalist-tokens {self.finalist_tokens} is below one sequence: give {self.sequence_length:,} or more"
            )


def default_out(config: SearchConfig, stamp: str) -> Path:
    """The run folder when none is given: ``runs/SPACE-STAMP``."""
    return Path("runs") / f"{Path(config.space).stem}-{stamp}"
