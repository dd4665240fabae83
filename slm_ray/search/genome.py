"""A search space bound to a teacher: genes, what they stand for, and how they are kept inside a budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.models.scores import UnitScores
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import QUANTITIES, Budget, measure_cost
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search import genes_text
from slm_ray.search.axes import (
    BoolArray,
    BoundAxis,
    FloatArray,
    IntArray,
    bind_axes,
    check_scores,
    check_teacher,
    natural_scores_of,
)
from slm_ray.search.codec import genes_of, spec_of
from slm_ray.search.groups import gene_deltas, gene_groups, gene_layers, gene_names
from slm_ray.search.ranking import Priorities, priorities_from_scores, random_priorities
from slm_ray.search.reachable import LayeredReach
from slm_ray.search.repair import settle
from slm_ray.search.sizing import Choice, CostModel, Rates, Sizer
from slm_ray.search.space import NATURAL, SearchSpace
from slm_ray.search.wide import WideReach


class Genome:
    """Genes of a search space for one teacher: whole numbers, ``lower <= genes <= upper``.

    Attributes:
        space: The search space.
        teacher: The teacher's sizes.
        num_genes: How many genes there are.
        lower: ``[genes]``, the least value of each.
        upper: ``[genes]``, the greatest value of each; all of them together keep everything.
        groups: The genes of each choice, in order.
        names: What each gene is called, such as ``neurons.layer3.block7``.
        guide: By which scores units are dropped and added to meet a budget.
        layer_of: ``[genes]``, the teacher's layer that a gene acts in, or switches; -1 where it acts in several.
    """

    def __init__(
        self,
        space: SearchSpace,
        teacher: Architecture,
        scores: Mapping[str, UnitScores] | None = None,
        guide: UnitScores | None = None,
        left: SubnetSpec | None = None,
    ) -> None:
        """Bind a space to a teacher.

        Args:
            space: The search space.
            teacher: The teacher's sizes; all its layers must be alike.
            scores: The scores of every order in ``space.orders()``, by name.
            guide: By which scores units are dropped and added to meet a budget; the first comparable ones of ``scores``
                unless given, else any of them, else the teacher's own order.
            left: The units that the teacher has left, where others of them are zero; no other is ever kept.

        Raises:
            UserError: The teacher does not fit: its layers differ, or it has fewer units than the space's least.
            ValueError: Scores are missing, or not of the teacher's sizes.
        """
        check_teacher(teacher)
        given = dict(scores or {})
        if missing := [order for order in space.orders() if order not in given]:
            raise ValueError(f"space '{space.name}' needs {', '.join(missing)} scores, got {sorted(given) or 'none'}")
        by_merit = sorted(given.values(), key=lambda one: not one.comparable)
        self.space, self.teacher = space, teacher
        given[NATURAL] = natural_scores_of(teacher)
        for one in [*given.values(), *([guide] if guide else [])]:
            check_scores(teacher, one)
        self._axes = bind_axes(space, teacher, given, left)
        self.left = left
        self._sizer = Sizer(self._axes, teacher)
        self.guide = guide or (by_merit[0] if by_merit else given[NATURAL])
        self._priorities = priorities_from_scores(self._axes, self.guide)
        self._costs: dict[tuple[str, int], CostModel] = {}
        self._possible: set[tuple[Budget, int]] = set()
        free = [axis for axis in self._axes.values() if axis.free]
        self.num_genes = sum(axis.stop - axis.start for axis in free)
        count = [axis.stop - axis.start for axis in free]
        self.lower = np.repeat([axis.least if axis.prefix else 0 for axis in free], count).astype(np.int64)
        self.upper = np.concatenate([np.zeros(0, dtype=np.int64), *(axis.contract(axis.allowed) for axis in free)])
        self.upper = np.maximum(self.upper, self.lower)  # where a layer is gone, whatever its genes say
        self.groups = tuple(group for axis in free for group in gene_groups(axis))
        own = [(group, self._axes[group.axis]) for group in self.groups]
        self.names = [name for group, axis in own for name in gene_names(group, axis)]
        self.layer_of = np.array([layer for group, axis in own for layer in gene_layers(group, axis)], dtype=np.int64)

    # What genes stand for

    def decode(self, genes: IntArray) -> SubnetSpec:
        """The sub-network that genes stand for. It is legal: some attention is kept, empty layers are left out."""
        return spec_of(self._sizer, self._expand(genes))

    def encode(self, spec: SubnetSpec) -> IntArray:
        """Genes that stand for a sub-network: ``decode(encode(decode(genes))) == decode(genes)``.

        Raises:
            ValueError: The space has no genes for it.
        """
        genes = genes_of(self._sizer, spec)
        return genes if self.left is None else np.clip(genes, self.lower, self.upper)

    def architecture(self, genes: IntArray) -> Architecture:
        """The sizes of ``decode(genes)``, without working out which units are kept."""
        sizes = self._sizer.measure(self._expand(genes))
        return Architecture(self.teacher.structure, sizes.hidden, tuple(shape for _, shape in sizes.layer_shapes()))

    def cost(self, genes: IntArray, quantity: str, sequence_length: int) -> int:
        """The exact cost of ``decode(genes)`` in a budget quantity, FLOPs at this sequence length."""
        return self._cost(quantity, sequence_length).of(self._expand(genes))

    def deltas(self, quantity: str, sequence_length: int) -> IntArray:
        """``[genes]``: what one step of each gene costs in the whole teacher, norms not counted.

        A step is a block for a bit and one block more for a count; for a choice that is made once for the model, it
        counts in every layer.
        """
        whole = self._sizer.measure(self._expand(self.upper))
        return gene_deltas(self._axes, self._cost(quantity, sequence_length), whole)

    def to_text(self, genes: IntArray) -> str:
        """A short line of text; :meth:`from_text` reads it back."""
        return genes_text.genes_to_text(self._axes.values(), self._checked(genes))

    def from_text(self, text: str) -> IntArray:
        """Read what :meth:`to_text` wrote.

        Raises:
            UserError: It was written for another space or another teacher.
        """
        return genes_text.text_to_genes(self._axes.values(), text)

    # For what chooses blocks itself

    def bound_axes(self) -> Mapping[str, BoundAxis]:
        """The axes, bound to the teacher."""
        return self._axes

    def cost_rates(self, quantity: str, sequence_length: int) -> Rates:
        """What units cost at the teacher's hidden size."""
        return self._cost(quantity, sequence_length).rates(self.teacher.hidden_size)

    def whole_choice(self) -> Choice:
        """The choice that keeps everything."""
        return self._sizer.expand(self.upper)

    def contract(self, choice: Choice) -> IntArray:
        """The genes of a choice."""
        # Of a layer that is gone nothing is left to keep, and its genes say the least that they can.
        return np.clip(self._sizer.contract(choice), self.lower, self.upper)

    # Budgets

    def reach(self, quantity: str, sequence_length: int) -> tuple[int, int]:
        """The least and the greatest cost the space can express."""
        cost, leanest = self._cost(quantity, sequence_length), self._sizer.expand(self.lower)
        for name, axis in self._axes.items():
            if axis.free and not axis.prefix:  # of as many blocks, those with the smaller last one are the leanest
                leanest.mask(name)[:] = np.arange(axis.blocks) >= axis.blocks - axis.least
        return cost.of(leanest), cost.of(self._sizer.expand(self.upper))

    def check_budget(self, budget: Budget, sequence_length: int) -> None:
        """Make sure that some genes fit a budget.

        Raises:
            UserError: None do; the message says what the space can reach.
        """
        if (budget, sequence_length) in self._possible:
            return
        cost = self._cost(budget.quantity, sequence_length)
        choice = self._sizer.expand(self.upper)
        if not settle(choice, cost, self._priorities, budget.low, budget.high):
            if self._nearest(choice, cost, budget) is None:
                raise UserError(self._impossible(budget, cost))
        self._possible.add((budget, sequence_length))

    def repair(
        self, genes: IntArray, budget: Budget, sequence_length: int, rng: np.random.Generator | None = None
    ) -> IntArray:
        """Genes inside a budget: these if they are, else with the least worthy units dropped, or the worthiest added.

        Args:
            genes: Any genes within the bounds.
            budget: The range to be in.
            sequence_length: The context at which FLOPs are counted.
            rng: Drop and add in random order, for a baseline that importance does not guide.

        Raises:
            UserError: No genes of this space fit the budget.
        """
        choice = self._expand(genes)
        if budget.holds(self._cost(budget.quantity, sequence_length).of(choice)):
            return np.array(genes, dtype=np.int64) if self.left is None else self.contract(choice)
        priorities = self._priorities if rng is None else random_priorities(self._axes, rng)
        return self._fit(choice, budget, sequence_length, priorities)

    def random(
        self, rng: np.random.Generator, budget: Budget, sequence_length: int, target: int | None = None
    ) -> IntArray:
        """Random genes inside a budget, near a cost drawn uniformly from it; importance plays no part in what is kept.

        Args:
            rng: Where the randomness comes from.
            budget: The range to be in.
            sequence_length: The context at which FLOPs are counted.
            target: The cost to be near instead of a drawn one.

        Raises:
            UserError: No genes of this space fit the budget.
        """
        least, most = self.reach(budget.quantity, sequence_length)
        low, high = max(budget.low, least), min(budget.high, most)
        if target is None:
            target = int(rng.integers(low, high, endpoint=True)) if low <= high else budget.low
        choice, priorities = self._random_choice(rng), random_priorities(self._axes, rng)
        return self._fit(choice, budget, sequence_length, priorities, target)

    def ranked(
        self,
        target_cost: int,
        budget: Budget,
        sequence_length: int,
        scores: UnitScores | None = None,
        tilt_heads: FloatArray | None = None,
        tilt_neurons: FloatArray | None = None,
    ) -> IntArray:
        """The genes importance alone gives: from the whole teacher, the least worthy units dropped down to a target.

        Comparable scores are compared across layers per unit of the budget's quantity; of others, only the ranks within
        each layer count.

        Args:
            target_cost: The cost to come down to, brought into the budget if it lies outside.
            budget: The range to be in.
            sequence_length: The context at which FLOPs are counted.
            scores: What units are worth; the guide unless given.
            tilt_heads: ``[layers]``, how many times as much the heads of each layer are worth.
            tilt_neurons: ``[layers]``, how many times as much the neurons of each layer are worth.

        Raises:
            UserError: No genes of this space fit the budget.
        """
        if scores is not None:
            check_scores(self.teacher, scores)
        priorities = self._priorities if scores is None else priorities_from_scores(self._axes, scores)
        if tilt_heads is not None or tilt_neurons is not None:
            priorities = priorities.tilted(tilt_heads, tilt_neurons)
        return self._fit(self._sizer.expand(self.upper), budget, sequence_length, priorities, target_cost)

    def _fit(
        self, choice: Choice, budget: Budget, sequence_length: int, priorities: Priorities, target: int | None = None
    ) -> IntArray:
        """Genes of a choice, changed to be inside the budget, and next to a target if there is one."""
        cost = self._cost(budget.quantity, sequence_length)
        if target is not None:
            goal = min(max(target, budget.low), budget.high)
            above = cost.of(choice) > goal
            settle(choice, cost, priorities, *((budget.low, goal) if above else (goal, budget.high)))
        if not settle(choice, cost, priorities, budget.low, budget.high):
            nearest = self._nearest(choice, cost, budget)
            if nearest is None:
                raise UserError(self._impossible(budget, cost))
            choice = nearest
        genes = self.contract(choice)
        exact = measure_cost(self.architecture(genes), budget.quantity, sequence_length)
        if not budget.holds(exact):
            raise ValueError(f"repair left a cost of {exact} outside {budget}")
        return genes

    def _nearest(self, choice: Choice, cost: CostModel, budget: Budget) -> Choice | None:
        """The choice nearest to one in a budget; None where there is none, or it takes units that are not left."""
        found = self._reachable(cost).nearest(choice, budget.low, budget.high)
        if found is not None and self.left is not None:
            kept = self._sizer.kept_layers(found)
            for name, axis in self._axes.items():
                excess = found.mask(name) & ~axis.allowed
                if np.any(excess[kept] if axis.per_layer else excess):
                    return None
        return found

    def _random_choice(self, rng: np.random.Generator) -> Choice:
        masks: dict[str, BoolArray] = {}
        for name, axis in self._axes.items():
            if not axis.free:
                masks[name] = axis.expand(self.upper)
                continue
            if axis.prefix:
                own = rng.integers(axis.least, axis.blocks, size=axis.rows, endpoint=True)
            else:
                own = (rng.random((axis.rows, axis.blocks)) < rng.random()).astype(np.int64).reshape(-1)
            masks[name] = axis.expand(np.concatenate([np.zeros(axis.start, dtype=np.int64), own]))
        return Choice(**masks)

    def _impossible(self, budget: Budget, cost: CostModel) -> str:
        unit = QUANTITIES[budget.quantity]
        least, most = self.reach(budget.quantity, cost.sequence_length)
        wanted = f"{budget.low:,} to {budget.high:,}" if budget.low < budget.high else f"exactly {budget.low:,}"
        head = f"no sub-network in space '{self.space.name}' has {wanted} {unit}"
        if budget.high < least or budget.low > most:
            fix = "a higher" if budget.high < least else "a lower"
            span = f"{least:,} ({format_count(least)}) to {most:,} ({format_count(most)})"
            return f"{head}: with this teacher it reaches {span}; choose {fix} budget or another space"
        below, above = self._reachable(cost).around(budget.low, budget.high)
        near = " and ".join(f"{end:,} ({format_count(end)})" for end in (below, above) if end is not None)
        return f"{head}: the nearest it can reach are {near}; widen the budget to include one"

    def _reachable(self, cost: CostModel) -> LayeredReach | WideReach:
        layered = any(self._axes[name].per_layer for name in ("heads", "queries", "neurons"))
        return LayeredReach(cost) if layered else WideReach(cost)

    def _cost(self, quantity: str, sequence_length: int) -> CostModel:
        key = (quantity, sequence_length)
        if key not in self._costs:
            self._costs[key] = CostModel(self._sizer, quantity, sequence_length)
        return self._costs[key]

    def _checked(self, genes: IntArray) -> IntArray:
        genes = np.asarray(genes)
        if genes.shape != self.lower.shape or not np.issubdtype(genes.dtype, np.integer):
            raise ValueError(f"genes must be {self.num_genes} whole numbers, got {genes.dtype} of shape {genes.shape}")
        if np.any(genes < self.lower) or np.any(genes > self.upper):
            raise ValueError("genes must lie within lower..upper")
        return genes

    def _expand(self, genes: IntArray) -> Choice:
        return self._sizer.expand(self._checked(genes))
