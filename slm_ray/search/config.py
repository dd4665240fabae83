"""The options of a search. Nothing here imports torch, pymoo or Ray: mistakes are found in the first second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from slm_ray.config.base import Config, Count, Text, option
from slm_ray.config.errors import UserError
from slm_ray.config.units import parse_number
from slm_ray.data.config import DataConfig
from slm_ray.models.bundled import BUNDLED_NAME, TEACHER_HELP
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import QUANTITIES, Budget, parse_budget, read_budget
from slm_ray.runtime.storage import STORAGE_HELP
from slm_ray.search.registry import PROXIES, SCREENED, AlgorithmName, parse_objectives

DEFAULT_BUDGET = "0.45..0.7"
_SCREEN = 4  # of nsga2; no gain was measured for others
_FEWEST_STEPS = 3  # to learn scores in

# SmolLM2-135M pruned to half its size, on 8k tokens: three steps of four sequences at pretraining's 1e-3 make it worse
# (held-out loss 3.96 to 4.29), at 2e-4 better (3.85); single sequences give 3.78 at 2e-4, 3.79 at 5e-4, 3.83 at 1e-4.
SHORT_LEARNING_RATE = 2e-4
_SHORT_STEPS, _SHORT_SEQUENCES = 32, 8


def short_batch_size(tokens: float, sequence_length: int) -> int:
    """Sequences of a step of short training: few enough for 32 steps, at most pretraining's 8."""
    return min(_SHORT_SEQUENCES, max(1, int(tokens) // (_SHORT_STEPS * sequence_length)))


EFFORTS: dict[str, dict[str, int]] = {
    "quick": {
        "trials": 3, "winners": 1, "calibration_tokens": 2048, "importance_steps": 10, "importance_tokens": 1024,
        "reconstruct_tokens": 8192,
    },
    "default": {
        "trials": 7, "winners": 3, "calibration_tokens": 4096, "importance_steps": 20, "importance_tokens": 1024,
        "reconstruct_tokens": 20_480,
    },
    "thorough": {
        "trials": 80, "winners": 3, "calibration_tokens": 8192, "importance_steps": 48, "importance_tokens": 1024,
        "reconstruct_tokens": 40_960,
    },
}  # fmt: skip
"""What each ``--effort`` stands for, by option. Up to eight trials are the learned ranking's own sizes, measured;
beyond them NSGA-II searches around these (benchmarks/README.md has what each costs and gives)."""

_DEFAULT = EFFORTS["default"]


def _in_words(effort: str) -> str:
    return ", ".join(f"{name.replace('_', '-')} {value:,}" for name, value in EFFORTS[effort].items())


class EffortConfig(Config):
    """How much to spend, in one dial."""

    effort: Literal["quick", "default", "thorough"] = option(
        "default", "; ".join(f"{name}: {_in_words(name)}" for name in ("quick", "thorough")) + "; flags come over it"
    )
    minutes: float | None = option(
        None, "time for all of it on this machine: sets what --effort sets, from a measured speed", gt=0
    )


class SpaceConfig(Config):
    """What is searched."""

    space: str = option("fine", "search space: a name in search_spaces/ or a YAML file")
    teacher: str = option(BUNDLED_NAME, TEACHER_HELP)
    vocabulary: Count | None = option(
        None, "tokens to keep, one number for all candidates [default: the space's choice]", ge=1
    )
    keep_vocabulary: bool = option(False, "leave the space's vocabulary axis out: keep all tokens")
    general: float = option(
        0.2, "where tokens may go: the share of other text in what they and candidates are measured by", ge=0,
        lt=1,
    )  # fmt: skip
    order: Literal["natural", "magnitude", "activation", "taylor"] | None = option(
        None, "unit order instead of the space file's"
    )


class BudgetConfig(Config):
    """The hard range of sizes, in one quantity."""

    params: Text | None = option(None, f"parameter budget: 0.5, 60M, 60M..70M [default: {DEFAULT_BUDGET}]")
    flops: Text | None = option(None, "FLOPs/token budget instead of --params")
    kv_bytes: Text | None = option(None, "KV-cache bytes/token budget instead of --params")

    @property
    def given(self) -> tuple[str, str]:
        """The quantity, and the range as it is written."""
        found = {name: value for name in QUANTITIES if (value := getattr(self, name)) is not None}
        return next(iter(found.items()), ("params", DEFAULT_BUDGET))

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [f"--{name.replace('_', '-')}" for name in QUANTITIES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given: a search has one budget; leave one out")
        read_budget(*self.given)
        return self


class PlanConfig(Config):
    """What proposes candidates, how many, and what they are compared by."""

    objectives: str = option("perplexity,params", "a proxy, and a cost unless the algorithm is ga")
    algorithm: AlgorithmName = option("nsga2", "search algorithm")
    trials: Count = option(_DEFAULT["trials"], "candidates to measure", ge=1)
    population: int = option(24, "population and generation size", ge=4)
    screen: int | None = option(
        None, "offspring per measured candidate, of which a regression picks; 1: no screening [default: 4 for nsga2, "
        "else 1]", ge=1,
    )  # fmt: skip
    seed: int = option(0, "seed of all randomness", ge=0)

    @property
    def objective_names(self) -> tuple[str, ...]:
        """The objectives: a proxy, and a cost if there are two."""
        return parse_objectives(self.objectives)

    @property
    def needed_proxies(self) -> tuple[str, ...]:
        """The objectives that have to be measured."""
        return tuple(name for name in self.objective_names if name in PROXIES)

    @property
    def screen_factor(self) -> int:
        """How many offspring are made for each candidate that is measured."""
        if self.screen is None:
            return _SCREEN if self.algorithm == "nsga2" else 1
        return self.screen

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        names = self.objective_names
        if self.algorithm == "ga" and len(names) != 1:
            raise ValueError(
                f"--algorithm ga takes one objective, got '{self.objectives}': give e.g. --objectives perplexity"
            )
        if self.algorithm == "nsga2" and len(names) != 2:
            raise ValueError(
                f"--algorithm nsga2 takes two objectives, got '{self.objectives}': give e.g. perplexity,params"
            )
        if self.screen_factor > 1 and self.algorithm not in SCREENED:
            raise ValueError(
                f"--screen {self.screen} picks among offspring, and --algorithm {self.algorithm} makes none: leave it "
                f"out, or use {' or '.join(SCREENED)}"
            )
        return self


class ScoresConfig(Config):
    """How unit scores are learned."""

    importance_steps: int = option(
        _DEFAULT["importance_steps"], "steps that Taylor scores are learned in; 1: one-shot", ge=1
    )
    importance_tokens: Count = option(_DEFAULT["importance_tokens"], "tokens of each importance step", ge=1)

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return self.importance_steps * self.importance_tokens

    @field_validator("importance_steps")
    @classmethod
    def _enough_steps(cls, value: int) -> int:
        if 1 < value < _FEWEST_STEPS:
            raise ValueError(f"must be 1 (one-shot), or {_FEWEST_STEPS} or more to learn in, got {value}")
        return value


class MeasureConfig(Config):
    """The text that candidates are measured on, and how far."""

    calibration_tokens: Count = option(_DEFAULT["calibration_tokens"], "tokens that candidates are measured on", ge=1)
    held_out_tokens: Count = option(8192, "tokens that the front is measured on", ge=1)
    other_data: str | None = option(
        None, "corpus of another kind, to see what winners are worth on it; it decides nothing"
    )
    other_tokens: Count = option(8192, "tokens of it that they are measured on", ge=1)
    stages: Text = option("512,2048", "tokens after which a beaten candidate is stopped; 'none' measures all in full")
    confidence: float = option(0.6, "one-sided confidence that a stopped candidate is beaten", gt=0.5, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "compute type; auto: bf16 where products in it are found faster"
    )

    @property
    def stage_tokens(self) -> tuple[int, ...]:
        """Where early stages end, in tokens."""
        if self.stages.strip().lower() == "none":
            return ()
        return tuple(int(parse_number(part)) for part in self.stages.split(","))

    @field_validator("stages")
    @classmethod
    def _ascending(cls, value: str) -> str:
        problem = f"must be ascending token counts like 512,2048, or none, got '{value}'"
        if value.strip().lower() == "none":
            return value
        try:
            ends = [int(parse_number(part)) for part in value.split(",")]
        except UserError:
            raise ValueError(problem) from None
        if ends != sorted(set(ends)) or ends[0] < 1:
            raise ValueError(problem)
        return value


class WinnersConfig(Config):
    """Which members of the front become models."""

    finalists: int = option(0, "members of the front to train shortly before winners are picked", ge=0)
    finalist_tokens: Count = option(16_000, "tokens that each finalist is trained on")
    winners: int = option(_DEFAULT["winners"], "models to extract from the front", ge=1)
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "type of the winners' weights; auto: the teacher's own, bf16 for a GGUF file"
    )

    @model_validator(mode="after")
    def _enough_finalists(self) -> Self:
        if self.finalists and self.finalists < self.winners:
            raise ValueError(
                f"--finalists {self.finalists} is below --winners {self.winners}, which are picked from them: give "
                f"{self.winners} or more"
            )
        return self


class ReconstructionConfig(Config):
    """Whose weights are fitted to the teacher's layers, and on what."""

    reconstruct: Literal["none", "winners", "all"] = option(
        "winners", "whose weights are fitted to the teacher's layers after the search"
    )
    reconstruct_tokens: Count = option(
        _DEFAULT["reconstruct_tokens"], "tokens they are fitted on, or all the train part has", ge=1
    )
    teacher_text: float = option(
        0.2, "share of the tokens that weights are fitted on which the teacher writes itself", ge=0, le=0.9
    )


class MachineConfig(Config):
    """Where a search runs and what it is written to; nothing of its result depends on it but the device."""

    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "what candidates and unit scores are computed on; auto: a GPU where there is one"
    )
    workers: int | None = option(
        None, "trials at once; 0: in this process, without Ray [default: usable CPUs / threads, two for a GPU]", ge=0
    )
    threads: int = option(1, "threads per trial", ge=1)
    address: str | None = option(None, "Ray cluster to join, e.g. auto [default: start one here]")
    storage: str | None = option(None, STORAGE_HELP)
    tracker: Literal["none", "wandb"] = option("none", "where metrics go beside the records")
    out: str | None = option(None, "run folder [default: runs/SPACE-TIME]")

    @model_validator(mode="after")
    def _cluster_has_workers(self) -> Self:
        if self.workers == 0 and self.address:
            raise ValueError(f"--workers 0 measures in this process, and --address {self.address} names a cluster")
        return self


class SearchConfig(Config):
    """Everything a search's result depends on, and where it is put."""

    effort: EffortConfig = EffortConfig()
    space: SpaceConfig = SpaceConfig()
    data: DataConfig = DataConfig()
    budget: BudgetConfig = BudgetConfig()
    plan: PlanConfig = PlanConfig()
    scores: ScoresConfig = ScoresConfig()
    measure: MeasureConfig = MeasureConfig()
    winners: WinnersConfig = WinnersConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    machine: MachineConfig = MachineConfig()

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the given ``--effort`` stands for."""
        return EFFORTS.get(str(given.get("effort")), {})

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return self.data.sequence_length

    def budget_of(self, teacher: Architecture) -> Budget:
        """The budget, its shares resolved for a teacher."""
        return parse_budget(*self.budget.given, teacher, self.length)

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        names = ("calibration_tokens", "held_out_tokens")
        needed = {name: getattr(self.measure, name) for name in names}
        if self.measure.other_data:
            needed["other_tokens"] = self.measure.other_tokens
        if self.winners.finalists:
            needed["finalist_tokens"] = self.winners.finalist_tokens
        for name, tokens in needed.items():
            if tokens < self.length:
                raise ValueError(
                    f"--{name.replace('_', '-')} {tokens} is below one sequence of --sequence-length {self.length}: "
                    f"give {self.length:,} or more"
                )
        return self
