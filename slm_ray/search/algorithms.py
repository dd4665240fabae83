"""Search algorithms behind one ask and tell: pymoo's NSGA-II and GA, and the baselines they have to beat.

An algorithm asks for one generation at a time and is told its results in the order asked, so what it does depends on
its seed and on the results alone, never on how many trials run at once or which finishes first.
"""

from __future__ import annotations

import itertools
from collections import deque
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
from slm_ray.search.pareto import front_of
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
        seeds: Sequence[IntArray] = (),
    ) -> None:
        """Set up pymoo with an importance-seeded first population.

        Args:
            kind: ``NSGA2`` or ``GA``.
            stack: What to search.
            seed: Of all its randomness.
            population: Its size, and that of every generation.
            num_objectives: How many objectives there are.
            seeds: Candidates to begin with, before those that importance gives.
        """
        self.name, self.population = kind.__name__.lower(), population
        self.screen: Screen | None = None
        first = {genes.tobytes(): genes for genes in [*seeds, *seed_genes(stack, max(1, population // 3))]}
        self._seeds = list(first.values())[:population]
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


def _screened(screen: Screen | None, children: list[IntArray], count: int) -> list[IntArray]:
    """All children, or those that a screen picks."""
    return children if screen is None else [children[at] for at in screen.pick(children, count)]


class RandomSearch:
    """Candidates drawn at random, importance playing no part; optionally spread evenly over the budget's sizes."""

    def __init__(self, stack: GenomeStack, seed: int, population: int, *, stratified: bool) -> None:
        self.stack, self.population, self.stratified = stack, population, stratified
        self.rng = np.random.default_rng(seed)

    def ask(self) -> list[Proposal]:
        """One more draw of a generation."""
        low, high = self.stack.reach()
        edges = np.linspace(low, high, self.population + 1)
        targets = [int(self.rng.uniform(a, b)) if self.stratified else None for a, b in itertools.pairwise(edges)]
        origin = "stratified" if self.stratified else "random"
        return [Proposal(self.stack.random(self.rng, target), origin) for target in targets]

    def tell(self, objectives: Array) -> None:
        """Nothing is learned."""


class LocalSearch:
    """Pareto local search: every generation is neighbours of the front so far, starting from the ranked seeds."""

    def __init__(self, stack: GenomeStack, seed: int, population: int) -> None:
        self.variation, self.population = Variation(stack), population
        self.rng = np.random.default_rng(seed)
        self.archive = np.zeros((0, stack.num_genes), dtype=np.int64)
        self.values = np.zeros((0, 0))
        self._asked = np.array(seed_genes(stack, max(1, population // 3)))
        self.screen: Screen | None = None
        self._origin = "seed"

    def ask(self) -> list[Proposal]:
        """The seeds, then neighbours of front members."""
        if len(self.archive):
            count = self.population * (self.screen.factor if self.screen else 1)
            parents = self.archive[self.rng.integers(len(self.archive), size=count)]
            children = [self.variation.mutate(genes, self.rng) for genes in parents]
            self._asked = np.array(_screened(self.screen, children, self.population))
            self._origin = "local"
        return [Proposal(genes, self._origin) for genes in self._asked]

    def tell(self, objectives: Array) -> None:
        """Keep the front of all seen so far."""
        if self.screen is not None:
            self.screen.learn(list(self._asked), objectives)
        genes = np.concatenate([self.archive, self._asked])
        values = np.concatenate([self.values, objectives]) if len(self.values) else objectives
        kept = front_of(values)
        self.archive, self.values = genes[kept], values[kept]


class RegularizedEvolution:
    """Ageing evolution (Real et al., arXiv 1802.01548): tournaments, mutation only, the oldest dies.

    With two objectives a tournament is won by a weighted sum whose weights are drawn anew each time.
    """

    def __init__(self, stack: GenomeStack, seed: int, population: int) -> None:
        self.stack, self.population, self.variation = stack, population, Variation(stack)
        self.rng = np.random.default_rng(seed)
        self.alive: deque[tuple[IntArray, Array]] = deque(maxlen=population)
        self._asked: list[IntArray] = []
        self.screen: Screen | None = None

    def ask(self) -> list[Proposal]:
        """Random candidates first, then children of tournament winners."""
        if not self.alive:
            self._asked = [self.stack.random(self.rng) for _ in range(self.population)]
        else:
            count = max(2, self.population // 2)
            made = count * (self.screen.factor if self.screen else 1)
            children = [self.variation.mutate(self._winner(), self.rng) for _ in range(made)]
            self._asked = _screened(self.screen, children, count)
        return [Proposal(genes, "regularized_evolution") for genes in self._asked]

    def _winner(self) -> IntArray:
        chosen = self.rng.integers(len(self.alive), size=min(5, len(self.alive)))
        values = np.array([self.alive[index][1] for index in chosen])
        span = np.ptp(np.array([value for _, value in self.alive]), axis=0)
        scaled = values / np.where(span > 0, span, 1.0)
        weights = self.rng.dirichlet(np.ones(values.shape[1]))
        return self.alive[chosen[int(np.argmin(scaled @ weights))]][0]

    def tell(self, objectives: Array) -> None:
        """The young join, the oldest leave."""
        if self.screen is not None:
            self.screen.learn(self._asked, objectives)
        self.alive.extend(zip(self._asked, objectives, strict=True))


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
    "random": lambda stack, seed, size, _: RandomSearch(stack, seed, size, stratified=False),
    "stratified": lambda stack, seed, size, _: RandomSearch(stack, seed, size, stratified=True),
    "local": lambda stack, seed, size, _: LocalSearch(stack, seed, size),
    "regularized_evolution": lambda stack, seed, size, _: RegularizedEvolution(stack, seed, size),
    "importance": lambda stack, seed, size, _: RankedSweep(stack, seed, size),
}

# Those that vary candidates, and so can make more of them than are measured.
SCREENED = ("nsga2", "ga", "local", "regularized_evolution")


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
        assert isinstance(algorithm, PymooAlgorithm | LocalSearch | RegularizedEvolution), "the options are checked"
        algorithm.screen = Screen(stack, objectives, factor, seed)
    return algorithm
