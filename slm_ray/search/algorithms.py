"""Search algorithms behind one ask and tell: pymoo's NSGA-II and GA, and the baselines they have to beat.

An algorithm asks for one generation at a time and is told its results in the order asked, so what it does depends on
its seed and on the results alone, never on how many trials run at once or which finishes first.
"""

from __future__ import annotations

from collections.abc import Sequence
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

_KINDS = {"nsga2": NSGA2, "ga": GA}


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


def make_algorithm(
    name: str, stack: GenomeStack, objectives: Sequence[str], population: int, seed: int, screen_factor: int = 1
) -> Algorithm:
    """An algorithm by name."""
    if name == "random":
        return RandomSearch(stack, seed, population)
    if name == "importance":
        return RankedSweep(stack, population)
    screen = Screen(stack, objectives, screen_factor, seed) if screen_factor > 1 else None
    return GeneticAlgorithm(name, stack, seed, population, len(objectives), screen)


def seed_genes(stack: GenomeStack, count: int, vocabulary: int | None = None) -> list[IntArray]:
    """Candidates by importance alone at sizes spread over the budget, largest first.

    Each ranking gives those of the sizes it is meant for, or of all sizes where it is meant for any, with every
    vocabulary or with one of them.
    """
    low, high = stack.reach()
    seeds: dict[bytes, IntArray] = {}
    number = max(1, count // len(stack.nearest(high, vocabulary)))
    for target in np.linspace(high, low, number):
        for which in stack.nearest(float(target), vocabulary):
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


class GeneticAlgorithm:
    """A pymoo genetic algorithm, asked and told one generation at a time.

    Where there are several vocabularies, the ranking's own choice at the largest size is measured with each before
    pymoo begins; its first population has the best of them.

    Attributes:
        screen: What picks the offspring that are measured among several times as many; None to measure all
    """

    def __init__(
        self, name: str, stack: GenomeStack, seed: int, population: int, num_objectives: int,
        screen: Screen | None = None, first: Sequence[IntArray] = (),
    ) -> None:  # fmt: skip
        """Set up pymoo.

        ``first``: The first population; by default a third of it by importance alone, and the rest neighbours of these.
        """
        self.name, self.population, self.screen = name, population, screen
        self._stack, self._seed, self._num_objectives, self._first = stack, seed, num_objectives, list(first)
        self._tried: list[IntArray] = []  # the largest size with each vocabulary
        self._algorithm: Any = None
        self._generation: Population | None = None  # as pymoo made it
        self._proposed = 0  # of it
        self._told: list[Array] = []

    def _begin(self) -> Population:
        """Set up pymoo; its first population has the candidates that were tried already at its head."""
        stack, population, tried, best = self._stack, self.population, self._tried, None
        if tried:
            best = int(np.argmin([row[0] for row in self._told[0]]))
        variation = Variation(stack)
        seeds = self._first or [*tried, *seed_genes(stack, max(1, population // 3 - max(0, len(tried) - 1)), best)]
        seeds = list({one.tobytes(): one for one in seeds}.values())
        sampling = self._first or _with_neighbours(seeds, variation, population, np.random.default_rng(self._seed))
        self._algorithm = _KINDS[self.name](
            pop_size=population,
            sampling=np.array(sampling),
            crossover=_StackCrossover(variation),
            mutation=_StackMutation(variation),
            eliminate_duplicates=DefaultDuplicateElimination(),
        )
        self._problem = Problem(
            n_var=stack.num_genes, n_obj=self._num_objectives, xl=stack.lower, xu=stack.upper, vtype=int
        )  # fmt: skip
        self._algorithm.setup(self._problem, termination=("n_gen", 10**9), seed=self._seed, verbose=False)
        self._num_seeds = self._proposed = len(seeds)
        return self._algorithm.ask()

    def ask(self) -> list[Proposal]:
        """The seeds first, so that the rest of the first population has a front to be raced against."""
        if self._generation is None:
            if len(self._stack.vocabularies) > 1 and not self._first and not self._tried:
                self._tried = seed_genes(self._stack, len(self._stack.vocabularies))
                return [Proposal(genes, "seed") for genes in self._tried]
            self._generation = self._begin()
            left = self._generation[len(self._tried) : self._num_seeds]
            if len(left):
                return [Proposal(one.X, "seed") for one in left]
        if self._proposed == len(self._generation):
            offspring = self._offspring()
            if offspring is None:
                return []
            self._generation, self._proposed = offspring, 0
        part, self._proposed = self._generation[self._proposed :], len(self._generation)
        return [Proposal(one.X, self.name) for one in part]

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
        if self._generation is None or self._proposed < len(self._generation):
            return
        values, self._told = np.concatenate(self._told), []
        if self.screen is not None:
            self.screen.learn([one.X for one in self._generation], values)
        Evaluator().eval(StaticProblem(self._problem, F=values), self._generation)
        self._algorithm.tell(infills=self._generation)


def _with_neighbours(
    seeds: Sequence[IntArray], variation: Variation, population: int, rng: np.random.Generator
) -> list[IntArray]:
    """Seeds, then mutations of theirs; fewer than ``population`` where the space has no more."""
    genes = {one.tobytes(): one for one in seeds}
    for attempt in range(50 * population):
        if len(genes) >= population:
            break
        child = variation.mutate(seeds[attempt % len(seeds)], rng)
        genes.setdefault(child.tobytes(), child)
    return list(genes.values())


class RandomSearch:
    """Candidates drawn at random; importance plays no part."""

    def __init__(self, stack: GenomeStack, seed: int, population: int) -> None:
        self._stack, self._population, self._rng = stack, population, np.random.default_rng(seed)

    def ask(self) -> list[Proposal]:
        """One more draw of a generation."""
        return [Proposal(self._stack.random(self._rng), "random") for _ in range(self._population)]

    def tell(self, objectives: Array) -> None:
        """Nothing is learned."""


class RankedSweep:
    """Importance-ranked one-shot selections, at ever finer sizes; no search at all."""

    def __init__(self, stack: GenomeStack, population: int) -> None:
        self._stack, self._density = stack, population
        self._known: set[bytes] = set()

    def ask(self) -> list[Proposal]:
        """Sizes between those tried so far."""
        for _ in range(6):
            fresh = [genes for genes in seed_genes(self._stack, self._density) if genes.tobytes() not in self._known]
            self._density *= 2
            if fresh:
                self._known.update(genes.tobytes() for genes in fresh)
                return [Proposal(genes, "importance") for genes in fresh]
        return []

    def tell(self, objectives: Array) -> None:
        """Nothing is learned."""
