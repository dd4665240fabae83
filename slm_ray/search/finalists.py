"""Finalists: members of the front that are trained for a short while before the winners are picked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.records.search import Trial
from slm_ray.runtime.progress import Console
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.search.config import SearchConfig
from slm_ray.search.finish import pick_winners
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.pareto import front_of
from slm_ray.search.plan import SearchPlan
from slm_ray.search.short_training import ShortTrainer, short_config
from slm_ray.search.trained import Trained

FINALISTS_FOLDER = "finalists"


def pick_finalists(front: Sequence[Trial], quantity: str, winners: int, count: int) -> list[int]:
    """Members of the front to train: those that would win without training, then sizes spread over the front.

    Args:
        front: Records, best first objective first.
        quantity: The cost that sizes are counted in.
        winners: How many winners there are to be.
        count: How many finalists at most; no fewer than winners.

    Returns:
        Positions in ``front``.
    """
    picked = pick_winners(front, quantity, winners)
    spread = pick_winners(front, quantity, count)
    others = [position for position in [*spread, *range(len(front))] if position not in picked]
    return [*picked, *dict.fromkeys(others)][:count]


def pick_trained_winners(
    front: Sequence[Trial], trained: Mapping[int, Trained], quantity: str, count: int
) -> list[int]:
    """Winners by their loss after training: the best first, then smaller ones that no finalist beats in both.

    Where fewer than ``count`` are unbeaten, the next best follow.

    Args:
        front: Records.
        trained: What training gave, by trial.
        quantity: The cost that sizes are counted in.
        count: How many to pick at most.

    Returns:
        Positions in ``front``; the first is the winner.

    Raises:
        UserError: Every training failed.
    """
    losses = {
        position: found.loss
        for position, record in enumerate(front)
        if (found := trained.get(record.trial)) is not None and found.loss is not None
    }
    if not losses:
        reason = next((found.error for found in trained.values() if found.error), "nothing was trained")
        raise UserError(f"every finalist's training failed, the first with: {reason}; continue with --resume")
    order = sorted(losses, key=lambda position: (losses[position], position))
    rows = np.array([[losses[position], front[position].cost[quantity]] for position in order], dtype=np.float64)
    unbeaten = [order[row] for row in front_of(rows)]
    picked = [unbeaten[index] for index in pick_winners([front[position] for position in unbeaten], quantity, count)]
    return [*picked, *(position for position in order if position not in picked)][:count]


def train_finalists(
    config: SearchConfig, inputs: SearchInputs, plan: SearchPlan, folder: RunFolder, console: Console
) -> dict[int, Trained]:
    """Train the finalists in RUN/finalists/TRIAL; those that an earlier process finished are not trained again.

    Args:
        config: The options.
        inputs: What the search started from.
        plan: The finished search.
        folder: The run folder.
        console: Where to say how far it is.

    Raises:
        UserError: Nothing was measured to the end, or nothing can be trained.
    """
    front = plan.measured_front()
    picked = pick_finalists(front, inputs.budget.quantity, config.winners, config.finalists)
    records = [front[position] for position in picked]
    specs = {record.trial: plan.stack.decode(plan.stack.from_text(record.genes)) for record in records}
    options = short_config(
        inputs.teacher, config.finalist_tokens, config.sequence_length, data=config.data, threads=config.threads,
        text_field=config.text_field, seed=config.seed,
    )  # fmt: skip

    def on_done(trial: int, trained: Trained) -> None:
        what = trained.error or f"perplexity {_perplexity(trained.first_loss)} to {_perplexity(trained.loss)}"
        console.line(f"finalist {trial}: {what}")

    trainer = ShortTrainer(
        options, inputs.teacher, folder.file(FINALISTS_FOLDER), console, keep_models=True, weights=inputs.teacher,
        measured_on=inputs.calibration,  # held-out text takes no part in any choice
    )  # fmt: skip
    return trainer.train(specs, on_done)


def _perplexity(loss: float | None) -> str:
    return "inf" if loss is None or loss > 20 else f"{math.exp(loss):.4g}"


def training_spent(trained: Mapping[int, Trained]) -> dict[str, Any]:
    """What the finalists' training cost, as ``spent`` holds it."""
    found = trained.values()
    return {
        "models": len(trained),
        "failed": sum(one.error is not None for one in found),
        "tokens": sum(one.tokens for one in found),
        "flops": sum(one.flops for one in found),
    }
