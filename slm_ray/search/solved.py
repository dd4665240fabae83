"""Searches that an integer program begins: its solutions alone, or as the seeds of NSGA-II."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2

from slm_ray.search.algorithms import Algorithm, Proposal, PymooAlgorithm
from slm_ray.search.axes import IntArray
from slm_ray.search.milp import CutPrices, IntegerProgram
from slm_ray.search.stack import GenomeStack

MILP, MILP_NSGA2 = "milp", "milp+nsga2"
SOLVED = (MILP, MILP_NSGA2)
Solve = Callable[[int], IntArray | None]


def stack_solver(stack: GenomeStack, prices: CutPrices) -> Solve:
    """Solves a stack's genome whose ranking was learned at the smallest size, at any ceiling of cost.

    Args:
        stack: What is searched.
        prices: The prices of cuts along that genome's orders.

    Raises:
        UserError: The space has choices that the integer program has not.
    """
    which = stack.smallest()
    budget = stack.budget
    program = IntegerProgram(stack.genomes[which], prices, budget.quantity, stack.sequence_length)

    def solve(target: int) -> IntArray | None:
        found = program.solve(budget.low, min(target, budget.high))
        return None if found is None else np.concatenate([[which], found[0]]).astype(np.int64)

    return solve


def solved_genes(stack: GenomeStack, solve: Solve, count: int) -> list[IntArray]:
    """Solutions at costs spread over the budget, the largest first."""
    low, high = stack.reach()
    found: dict[bytes, IntArray] = {}
    for target in np.linspace(high, low, max(1, count)):
        genes = solve(int(target))
        if genes is not None:
            found.setdefault(genes.tobytes(), genes)
    return list(found.values())


class SolvedSweep:
    """The integer program's solutions at ever finer budgets; no search at all."""

    def __init__(self, stack: GenomeStack, solve: Solve, population: int) -> None:
        self.stack, self.solve, self._density = stack, solve, population
        self._known: set[bytes] = set()

    def ask(self) -> list[Proposal]:
        """Solutions at costs between those tried so far."""
        for _ in range(4):
            found = solved_genes(self.stack, self.solve, self._density)
            fresh = [genes for genes in found if genes.tobytes() not in self._known]
            self._density *= 2
            if fresh:
                self._known.update(genes.tobytes() for genes in fresh)
                return [Proposal(genes, MILP) for genes in fresh]
        return []

    def tell(self, objectives: NDArray[np.float64]) -> None:
        """Nothing is learned."""


def solved_algorithm(
    name: str, stack: GenomeStack, solve: Solve, seed: int, population: int, num_objectives: int
) -> Algorithm:
    """One of ``SOLVED``.

    Args:
        name: Which.
        stack: What is searched.
        solve: The integer program.
        seed: Of all randomness.
        population: Size of a generation.
        num_objectives: How many objectives there are.
    """
    if name == MILP:
        return SolvedSweep(stack, solve, population)
    seeds = solved_genes(stack, solve, max(1, population // 3))
    return PymooAlgorithm(NSGA2, stack, seed, population, num_objectives, seeds)
