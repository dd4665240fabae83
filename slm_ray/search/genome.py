"""A search space bound to a teacher: genes, what they stand for, and how they are kept inside a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.models.scores import UnitScores
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import QUANTITIES, Budget, measure_cost
from slm_ray.records.subnet import LayerUnits, SubnetSpec
from slm_ray.search.axes import BoolArray, IntArray, bind_axes, check_scores, check_teacher, natural_scores_of
from slm_ray.search.priorities import Priorities
from slm_ray.search.reachable import IsPlain, Reach, WideReach, reach_of
from slm_ray.search.repair import settle
from slm_ray.search.sizes import Choice, CostModel
from slm_ray.search.space import NATURAL, SearchSpace


class Genome:
    """Genes of a search space for one teacher: whole numbers, ``lower <= genes <= upper``.

    Attributes:
        space: The search space
        teacher: The teacher's sizes, with the rows of the vocabulary that are kept
        vocabulary: The token ids that are kept; None: all
        num_genes: How many genes there are
        lower: ``[genes]``, the least value of each
        upper: ``[genes]``, the greatest value of each; all of them together keep everything
        groups: The genes of each choice, in order
        guide: By which scores units are pruned and added to meet a budget
    """

    def __init__(
        self,
        space: SearchSpace,
        teacher: Architecture,
        scores: Mapping[str, UnitScores] | None = None,
        guide: UnitScores | None = None,
        is_plain: IsPlain | None = None,
        vocabulary: tuple[int, ...] | None = None,
    ) -> None:
        """Bind a space to a teacher.

        ``teacher``: The teacher's sizes; all its layers must be alike. ``guide``: By which scores units are pruned and
        added to meet a budget; the first comparable ones of ``scores`` unless given, else any of them, else the
        teacher's own order. ``is_plain``: Whether the family's plain class can express sizes. Where all choices are
        model-wide, repaired and random genes prefer such sizes; by default any are as good. ``vocabulary``: The token
        ids that every sub-network keeps, ascending; all by default.

        Raises:
            ValueError: Scores are missing, or not of the teacher's sizes.
        """
        check_teacher(teacher)
        if vocabulary is not None:
            structure = dataclasses.replace(teacher.structure, vocab_size=len(vocabulary))
            teacher = dataclasses.replace(teacher, structure=structure)
        self.vocabulary = vocabulary
        given = dict(scores or {})
        if missing := [order for order in space.orders() if order not in given]:
            raise ValueError(f"space '{space.name}' needs {', '.join(missing)} scores, got {sorted(given) or 'none'}")
        by_merit = sorted(given.values(), key=lambda one: not one.comparable)
        self.space, self.teacher, self._is_plain = space, teacher, is_plain
        given[NATURAL] = natural_scores_of(teacher)
        for one in [*given.values(), *([guide] if guide else [])]:
            check_scores(teacher, one)
        self._axes = bind_axes(space, teacher, given)
        self.guide = guide or (by_merit[0] if by_merit else given[NATURAL])
        self._priorities = Priorities.from_scores(self._axes, self.guide)
        self._costs: dict[tuple[str, int], CostModel] = {}
        self._possible: set[tuple[Budget, int]] = set()
        free = [axis for axis in self._axes.values() if axis.free]
        self.num_genes = sum(axis.stop - axis.start for axis in free)
        count = [axis.stop - axis.start for axis in free]
        self.lower = np.repeat([axis.least if axis.is_count else 0 for axis in free], count).astype(np.int64)
        self.upper = np.repeat([axis.blocks if axis.is_count else 1 for axis in free], count).astype(np.int64)
        self.groups = tuple(group for axis in free for group in axis.groups())

    # What genes stand for

    def decode(self, genes: IntArray) -> SubnetSpec:
        """The sub-network that genes stand for.

        It is legal: some attention is always kept, and layers that keep nothing are left out.
        """
        choice, axes, layers = self._choice(genes), self._axes, []
        sizes = choice.sizes()
        heads, neurons = choice.per_layer("heads"), choice.per_layer("neurons")
        for source, shape in sizes.layer_shapes(self.teacher):
            best = axes["heads"].order[source, :1].tolist()
            kv_heads = best if source == sizes.rescued else axes["heads"].kept_units(source, heads[source])
            ranked = axes["queries"].order[source, kv_heads, : sizes.queries[source]]
            groups = tuple(tuple(sorted(group)) for group in ranked.tolist())
            kept = axes["neurons"].kept_units(source, neurons[source]) if shape.intermediate_size else []
            layers.append(LayerUnits(source, tuple(kv_heads), groups, tuple(kept)))
        hidden = axes["hidden"].kept_units(0, choice.masks["hidden"][0])
        return SubnetSpec(tuple(hidden), tuple(layers), self.vocabulary)

    def architecture(self, genes: IntArray) -> Architecture:
        """The sizes of ``decode(genes)``, without working out which units are kept."""
        return self._architecture(self._choice(genes))

    def cost(self, genes: IntArray, quantity: str, sequence_length: int) -> int:
        """The exact cost of ``decode(genes)`` in a budget quantity, FLOPs at this sequence length."""
        return self._cost(quantity, sequence_length).of(self._choice(genes))

    def to_text(self, genes: IntArray) -> str:
        """A short line of text such as ``layers=x3fffffff;heads=3,2,3``; :meth:`from_text` reads it back."""
        genes = self._checked(genes)
        return ";".join(axis.to_text(genes[axis.start : axis.stop]) for axis in self._axes.values() if axis.free)

    def from_text(self, text: str) -> IntArray:
        """Read what :meth:`to_text` wrote."""
        wanted = [axis for axis in self._axes.values() if axis.free]
        parts = [part.partition("=") for part in text.split(";")]
        names = [name for name, _, _ in parts]
        if names != [axis.name for axis in wanted]:
            rule = f"must name the axes {', '.join(axis.name for axis in wanted)} in this order, got {', '.join(names)}"
            raise UserError(f"genes {rule}: they were written for another search space")
        return np.concatenate([axis.from_text(value) for axis, (_, _, value) in zip(wanted, parts, strict=True)])

    # Budgets

    def reach(self, quantity: str, sequence_length: int) -> tuple[int, int]:
        """The least and the greatest cost the space can express."""
        cost, leanest = self._cost(quantity, sequence_length), self._choice(self.lower)
        for name, axis in self._axes.items():
            if axis.free and not axis.is_count:  # of as many blocks, those with the smaller last one are the leanest
                leanest.masks[name][:] = np.arange(axis.blocks) >= axis.blocks - axis.least
        return cost.of(leanest), cost.of(self._choice(self.upper))

    def fits(self, budget: Budget, sequence_length: int) -> bool:
        """Whether some genes fit a budget."""
        try:
            self.check_budget(budget, sequence_length)
        except UserError:
            return False
        return True

    def check_budget(self, budget: Budget, sequence_length: int) -> None:
        """Make sure that some genes fit a budget."""
        if (budget, sequence_length) not in self._possible:
            cost = self._cost(budget.quantity, sequence_length)
            self._settled(self._choice(self.upper), budget, cost, self._priorities)
            self._possible.add((budget, sequence_length))

    def repair(
        self, genes: IntArray, budget: Budget, sequence_length: int, rng: np.random.Generator | None = None
    ) -> IntArray:
        """Genes inside a budget: these if they are, else with the least worthy units pruned, or the worthiest added.

        ``sequence_length``: The context at which FLOPs are counted.
        """
        choice = self._choice(genes)
        cost = self._cost(budget.quantity, sequence_length)
        if budget.holds(cost.of(choice)) and self._plainer(choice, budget, cost) is choice:
            return np.array(genes, dtype=np.int64)
        priorities = self._priorities if rng is None else Priorities.at_random(self._axes, rng)
        return self._fit(choice, budget, sequence_length, priorities)

    def random(
        self, rng: np.random.Generator, budget: Budget, sequence_length: int, target: int | None = None
    ) -> IntArray:
        """Random genes inside a budget, near a cost drawn uniformly from it; importance plays no part in what is kept.

        ``sequence_length``: The context at which FLOPs are counted.
        """
        least, most = self.reach(budget.quantity, sequence_length)
        low, high = max(budget.low, least), min(budget.high, most)
        if target is None:
            target = int(rng.integers(low, high, endpoint=True)) if low <= high else budget.low
        choice, priorities = self._random_choice(rng), Priorities.at_random(self._axes, rng)
        return self._fit(choice, budget, sequence_length, priorities, target)

    def ranked(self, target_cost: int, budget: Budget, sequence_length: int) -> IntArray:
        """The genes importance alone gives: from the whole teacher, the least worthy units pruned down to a target.

        Comparable scores are compared across layers per unit of the budget's quantity; of others, only the ranks within
        each layer count.

        ``sequence_length``: The context at which FLOPs are counted.
        """
        return self._fit(self._choice(self.upper), budget, sequence_length, self._priorities, target_cost)

    def _fit(
        self, choice: Choice, budget: Budget, sequence_length: int, priorities: Priorities, target: int | None = None
    ) -> IntArray:
        """Genes of a choice, changed to be inside the budget, and next to a target if there is one."""
        cost = self._cost(budget.quantity, sequence_length)
        if target is not None:
            goal = min(max(target, budget.low), budget.high)
            above = cost.of(choice) > goal
            settle(choice, cost, priorities, *((budget.low, goal) if above else (goal, budget.high)))
        choice = self._plainer(self._settled(choice, budget, cost, priorities), budget, cost)
        exact = measure_cost(self._architecture(choice), budget.quantity, sequence_length)
        if not budget.holds(exact):
            raise ValueError(f"repair left a cost of {exact} outside {budget}")
        return choice.genes()

    def _settled(self, choice: Choice, budget: Budget, cost: CostModel, priorities: Priorities) -> Choice:
        """A choice inside the budget: this one, changed in place, or the nearest there is."""
        if settle(choice, cost, priorities, budget.low, budget.high):
            return choice
        whole = self._choice(self.upper)
        if not cost.is_even and settle(whole, cost, priorities, budget.low, budget.high):
            return whole
        reach = reach_of(self._axes, cost)
        nearest = reach.nearest(choice, budget.low, budget.high)
        if nearest is None:
            raise UserError(self._impossible(budget, cost, reach))
        return nearest

    def _plainer(self, choice: Choice, budget: Budget, cost: CostModel) -> Choice:
        """The nearest choice inside the budget that the family's plain class can express; this one where none can."""
        if self._is_plain is None or not cost.is_even or self._is_plain(self._architecture(choice)):
            return choice
        reach = reach_of(self._axes, cost)
        if not isinstance(reach, WideReach):
            return choice
        return reach.nearest(choice, budget.low, budget.high, self._is_plain) or choice

    def _random_choice(self, rng: np.random.Generator) -> Choice:
        masks: dict[str, BoolArray] = {}
        for name, axis in self._axes.items():
            if not axis.free:
                own = self.upper[:0]
            elif axis.is_count:
                own = rng.integers(axis.least, axis.blocks, size=axis.rows, endpoint=True)
            else:
                own = (rng.random((axis.rows, axis.blocks)) < rng.random()).astype(np.int64).reshape(-1)
            masks[name] = axis.expand(own)
        return Choice(self._axes, masks)

    def _impossible(self, budget: Budget, cost: CostModel, reach: Reach) -> str:
        unit = QUANTITIES[budget.quantity]
        least, most = self.reach(budget.quantity, cost.sequence_length)
        wanted = f"{budget.low:,} to {budget.high:,}" if budget.low < budget.high else f"exactly {budget.low:,}"
        head = f"no sub-network in space '{self.space.name}' has {wanted} {unit}"
        if budget.high < least or budget.low > most:
            fix = "a higher" if budget.high < least else "a lower"
            span = f"{least:,} ({format_count(least)}) to {most:,} ({format_count(most)})"
            return f"{head}: with this teacher it reaches {span}; choose {fix} budget or another space"
        near = " and ".join(
            f"{end:,} ({format_count(end)})" for end in reach.around(budget.low, budget.high) if end is not None
        )
        return f"{head}: the nearest it can reach are {near}; widen the budget to include one"

    def _cost(self, quantity: str, sequence_length: int) -> CostModel:
        key = (quantity, sequence_length)
        if key not in self._costs:
            self._costs[key] = CostModel(self.teacher, quantity, sequence_length)
        return self._costs[key]

    def _architecture(self, choice: Choice) -> Architecture:
        sizes = choice.sizes()
        shapes = tuple(shape for _, shape in sizes.layer_shapes(self.teacher))
        return Architecture(self.teacher.structure, sizes.hidden, shapes)

    def _choice(self, genes: IntArray) -> Choice:
        return Choice.of(self._axes, self._checked(genes))

    def _checked(self, genes: IntArray) -> IntArray:
        genes = np.asarray(genes)
        if genes.shape != self.lower.shape or not np.issubdtype(genes.dtype, np.integer):
            raise ValueError(f"genes must be {self.num_genes} whole numbers, got {genes.dtype} of shape {genes.shape}")
        if np.any(genes < self.lower) or np.any(genes > self.upper):
            raise ValueError("genes must lie within lower..upper")
        return genes
