"""Searches in one process: a plan driven by hand, and the whole command with everything but Ray."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from slm_ray.records.search import Measurement
from slm_ray.search.plan import SearchPlan
from slm_ray.search.race import full_estimate, is_beaten
from slm_ray.search.tasks import Idle, Outcome, Task

Answer = tuple[Outcome | None, str | None]


def drive(plan: SearchPlan, measure: Callable[[Task], Answer], at_once: int = 1, seed: int | None = None) -> list[Task]:
    """Run a plan to its end with ``at_once`` tasks running, which finish in a random order if there is a ``seed``.

    Returns:
        The tasks, in the order they finished.
    """
    rng = random.Random(seed)
    running: list[Task] = []
    done: list[Task] = []
    while True:
        while len(running) < at_once and not isinstance(task := plan.next(), Idle):
            running.append(task)
        if not running:
            assert plan.is_finished
            return done
        task = running.pop(0 if seed is None else rng.randrange(len(running)))
        plan.finish(task.index, *measure(task))
        done.append(task)


def made_up(plan: SearchPlan) -> Callable[[Task], Answer]:
    """A measurement that is made up from the genes alone: smaller is worse, with noise; raced in three stages."""

    def measure(task: Task) -> Answer:
        genes = plan.stack.from_text(task.genes)
        rng = np.random.default_rng(list(task.genes.encode()))
        loss = 3 - plan.stack.cost(genes, "params") / 40_000 + 0.3 * rng.random()
        blocks = [round(float(loss + 0.2 * np.cos(number) + 0.05 * rng.normal()), 5) for number in range(24)]
        decided = "full"
        for end in (6, 12):
            if is_beaten(blocks[:end], task.rival, 0.9):
                blocks, decided = blocks[:end], "dominated"
                break
        value = float(f"{np.exp(full_estimate(blocks, task.rival)):.7g}")
        found = Measurement(value=value, stderr=0.1, tokens=64 * len(blocks), seconds=0.0, blocks=tuple(blocks))
        values = {"perplexity": value}
        return Outcome(measurements={"perplexity": found}, values=values, decided=decided, seconds=0.0), None

    return measure


def run_without_ray(patch: pytest.MonkeyPatch) -> None:
    """Make the command measure in this process, one candidate after the other, as with ``--workers 0``."""
    patch.setattr("slm_ray.search.run.search_workers", lambda config: 0)
