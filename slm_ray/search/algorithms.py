"""Search algorithms behind one ask and tell: pymoo's NSGA-II and GA, and the baselines they have to beat.

An algorithm asks for one generation at a time and is told its results in the order asked, so what it does depends on
its seed and on the results alone, never on how many trials run at once or which finishes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.problems.static import StaticProblem

from slm_ray.search.axes import IntArray
from slm_ray.search.stack import GenomeStack
from slm_ray.search.surrogate import Screen
from slm_ray.search.variation import Variation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Proposal:
    """Genes to try, and where they came from."""

    genes: IntArray
    origin: str


class Algorithm(Protocol):
    """Anything that proposes generations of candidates."""

    def ask(self) -> list[Proposal]:
        """The next generation; empty when there is nothing left to try."""

    def tell(self, objectives: Array) -> None:
        """Results ``[candidates, objectives]`` of the generation asked for last, all minimised and finite."""


def seed_genes(stack: GenomeStack, count: int) -> list[IntArray]:
    """What rankings alone give at sizes spread over the budget, largest first: each at its own sizes, or all at all."""
    low, high = stack.reach()
    seeds: dict[bytes, IntArray] = {}
    number = count if stack.sizes else max(1, count // len(stack.genomes))
    for target in np.linspace(high, low, number):
        own = stack.nearest(float(target))
        for which in range(len(stack.genomes)) if own is None else [own]:
            genes = stack.ranked(which, int(target))
            seeds.setdefault(genes.tobytes(), genes)
    return list(seeds.values())[:count]


class _StackCrossover(Crossover):
    """pymoo's view of :meth:`Variation.cross`."""

    def __init__(self, variation: Variation) -> None:
        super().__init__(n_parents=2, n_offsprings=1, prob=0.5)
        self.variation = variation

    def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:
        pairs = zip(X[0], X[1], strict=True)
        return np.array([[self.variation.cross(a, b, random_state) for a, b in pairs]])


class _StackMutation(Mutation):
    """pymoo's view of :meth:`Variation.mutate`."""

    def __init__(self, variation: Variation) -> None:
        super().__init__(prob=0.95)
        self.variation = variation

    def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:
        return np.array([self.variation.mutate(genes, random_state) for genes in X])


class PymooAlgorithm:
    """A pymoo genetic algorithm, asked and told one generation at a time."""

    def __init__(
        self,
        kind: type,
        stack: GenomeStack,
        seed: int,
        population: int,
        num_objectives: int,
    ) -> None:
        """Set up pymoo with an importance-seeded first population.

        Args:
            kind: ``NSGA2`` or ``GA``.
            stack: What to search.
            seed: Of all its randomness.
            population: Its size, and that of every generation.
            num_objectives: How many objectives there are.
        """
        self.name, self.population = kind.__name__.lower(), population
        self.screen: Screen | None = None
        self._seeds = seed_genes(stack, max(1, population // 3))
        variation = Variation(stack)
        self._algorithm = kind(
            pop_size=population,
            sampling=self._first_population(stack, variation, population, np.random.default_rng(seed)),
            crossover=_StackCrossover(variation),
            mutation=_StackMutation(variation),
            eliminate_duplicates=DefaultDuplicateElimination(),
        )
        problem = Problem(
            n_var=stack.num_genes, n_obj=num_objectives, xl=stack.lower, xu=stack.upper, vtype=int
        )  # fmt: skip
        self._problem = problem
        self._algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed, verbose=False)
        self._started = False
        self._asked: Population | None = None
        self._first: Population | None = None
        self._told: list[Array] = []

    def _first_population(
        self, stack: GenomeStack, variation: Variation, population: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """The ranked seeds, then neighbours of theirs."""
        genes = list(self._seeds)
        known = {one.tobytes() for one in genes}
        for attempt in range(50 * population):
            if len(genes) >= population:
                break
            child = variation.mutate(self._seeds[attempt % len(self._seeds)], rng)
            if child.tobytes() not in known:
                known.add(child.tobytes())
                genes.append(child)
        return np.array(genes)

    def ask(self) -> list[Proposal]:
        """The seeds first, so that the rest of the first population has a front to be raced against."""
        if self._first is None:
            self._first = self._algorithm.ask()
            return [Proposal(one.X, "seed") for one in self._first[: len(self._seeds)]]
        if not self._started and len(self._first) > len(self._seeds):
            self._started = True
            return [Proposal(one.X, self.name) for one in self._first[len(self._seeds) :]]
        self._started = True
        self._asked = self._offspring()
        return [] if self._asked is None else [Proposal(one.X, self.name) for one in self._asked]

    def _offspring(self) -> Population | None:
        """The next generation; with a screen, those it picks of several times as many."""
        if self.screen is None:
            return self._algorithm.ask()
        self._algorithm.n_offsprings = self.screen.factor * self.population
        made = self._algorithm.ask()
        return None if made is None else made[self.screen.pick([one.X for one in made], self.population)]

    def tell(self, objectives: Array) -> None:
        """Hand pymoo a generation once it is complete; the two halves of the first one are handed over together."""
        self._told.append(objectives)
        asked = self._asked
        if asked is None:
            assert self._first is not None
            if sum(map(len, self._told)) < len(self._first):
                return
            asked = self._first
        values = np.concatenate(self._told)
        self._told = []
        if self.screen is not None:
            self.screen.learn([one.X for one in asked], values)
        Evaluator().eval(StaticProblem(self._problem, F=values), asked)
        self._algorithm.tell(infills=asked)


class RandomSearch:
    """Candidates drawn at random; importance plays no part."""

    def __init__(self, stack: GenomeStack, seed: int, population: int) -> None:
        self.stack, self.population = stack, population
        self.rng = np.random.default_rng(seed)

    def ask(self) -> list[Proposal]:
        """One more draw of a generation."""
        return [Proposal(self.stack.random(self.rng), "random") for _ in range(self.population)]

    def tell(self, objectives: Array) -> None:
        """Nothing is learned."""


class RankedSweep:
    """Importance-ranked one-shot selections, at ever finer sizes; no search at all."""

    def __init__(self, stack: GenomeStack, seed: int, population: int) -> None:
        self.stack, self.population = stack, population
        self._known: set[bytes] = set()
        self._density = population

    def ask(self) -> list[Proposal]:
        """Sizes between those tried so far."""
        for _ in range(6):
            fresh = [genes for genes in seed_genes(self.stack, self._density) if genes.tobytes() not in self._known]
            self._density *= 2
            if fresh:
                self._known.update(genes.tobytes() for genes in fresh)
                return [Proposal(genes, "importance") for genes in fresh]
        return []

    def tell(self, objectives: Array) -> None:
        """Nothing is learned."""


Maker = Callable[[GenomeStack, int, int, int], Algorithm]

ALGORITHMS: dict[str, Maker] = {
    "nsga2": lambda stack, seed, size, objectives: PymooAlgorithm(NSGA2, stack, seed, size, objectives),
    "ga": lambda stack, seed, size, objectives: PymooAlgorithm(GA, stack, seed, size, objectives),
    "random": lambda stack, seed, size, _: RandomSearch(stack, seed, size),
    "importance": lambda stack, seed, size, _: RankedSweep(stack, seed, size),
}

# Those that vary candidates, and so can make more of them than are measured.
SCREENED = ("nsga2", "ga")


def with_screen(
    algorithm: Algorithm, stack: GenomeStack, objectives: Sequence[str], factor: int, seed: int
) -> Algorithm:
    """An algorithm, told to make ``factor`` times as many offspring as are measured where that is over 1.

    Args:
        algorithm: It has not been asked yet.
        stack: What is searched.
        objectives: A proxy, and a cost if there are two.
        factor: Offspring per candidate that is measured.
        seed: Of the screen's own randomness.
    """
    if factor > 1:
        assert isinstance(algorithm, PymooAlgorithm), "the options are checked"
        algorithm.screen = Screen(stack, objectives, factor, seed)
    return algorithm
