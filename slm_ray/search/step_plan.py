"""``--steps``: the sizes that a teacher is cut down to one after the other, and the options of what is done at each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import parse_number
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import QUANTITIES, Budget, measure_cost
from slm_ray.search.config import SearchConfig
from slm_ray.search.genome import Genome
from slm_ray.search.space import NATURAL, SearchSpace

STEPS_FOLDER = "steps"
_WIDTH = 0.9  # an earlier search looks at sizes down to this share of its step's: it needs one winner, not a front
# Tokens from which pretraining's own learning rate is right; below, that of short training is.
_MANY_TOKENS = 1e6


@dataclass(frozen=True)
class StepPlan:
    """A step before the last: a search, whose winner is then trained.

    Attributes:
        number: From 1.
        budget: What is searched.
    """

    number: int
    budget: Budget

    def folder(self, run: Path) -> Path:
        """Where it lies in a run."""
        return run / STEPS_FOLDER / str(self.number)

    def search_config(self, config: SearchConfig) -> SearchConfig:
        """The options of its search: the run's, but for the size, and for what only a last search is asked for."""
        own: dict[str, Any] = dict.fromkeys((*QUANTITIES, "storage", "out", "other_data"))
        own[self.budget.quantity] = f"{self.budget.low}..{self.budget.high}"
        return dataclasses.replace(
            config, **own, steps=1, winners=1, finalists=0, audit=0,
            reconstruct="none" if config.reconstruct == "none" else "winners",
            tracker="jsonl" if config.tracker == "wandb" else config.tracker,
        )  # fmt: skip


def step_plans(config: SearchConfig, teacher: Architecture) -> list[StepPlan]:
    """The steps before the last: each keeps the same share of the one before, down to the budget's upper end.

    Args:
        config: The options.
        teacher: The sizes of the teacher that was given.

    Raises:
        UserError: The budget cannot be read.
    """
    budget, length = config.budget(teacher), config.sequence_length
    whole = measure_cost(teacher, budget.quantity, length)
    sizes = [round(whole * (budget.high / whole) ** (number / config.steps)) for number in range(1, config.steps)]
    # No lower than the next step's size, which is cut out of what this one leaves.
    lowest = [*sizes[1:], budget.high][: len(sizes)]
    return [
        StepPlan(number, Budget(budget.quantity, max(round(_WIDTH * size), low), size))
        for number, (size, low) in enumerate(zip(sizes, lowest, strict=True), start=1)
    ]


def check_steps(config: SearchConfig, space: SearchSpace, teacher: Architecture) -> None:
    """Make sure that a space and a teacher can be searched in steps.

    Args:
        config: The options.
        space: The search space.
        teacher: The sizes of the teacher that was given.

    Raises:
        UserError: They cannot.
    """
    if config.steps == 1:
        return
    if "hidden" in space.axes:
        raise UserError(
            f"--steps {config.steps} needs a space that keeps all hidden channels, because a norm is taken over all of "
            f"them, and space '{space.name}' chooses some: give --space fine or depth, or a file without axes.hidden"
        )
    genome = Genome(space.with_order(NATURAL), teacher)
    for step in step_plans(config, teacher):
        try:
            genome.check_budget(step.budget, config.sequence_length)
        except UserError as error:
            raise UserError(f"--steps {config.steps}, step {step.number}: {error}; or give --steps 1") from error


def step_tokens(config: SearchConfig) -> int:
    """Tokens that a step's winner is trained on.

    Raises:
        UserError: They are no count.
    """
    return int(parse_number(config.step_tokens))


def training_options(config: SearchConfig) -> dict[str, Any]:
    """The options of a step's training that follow from its tokens: those of short training where there are few."""
    from slm_ray.pretrain.config import DEFAULTS
    from slm_ray.search.trained import LEARNING_RATE, batch_size_of

    tokens = step_tokens(config)
    rate = config.step_learning_rate or (LEARNING_RATE if tokens < _MANY_TOKENS else DEFAULTS["learning_rate"])
    return {"tokens": config.step_tokens, "batch_size": batch_size_of(tokens, config.sequence_length),
            "learning_rate": rate}  # fmt: skip
