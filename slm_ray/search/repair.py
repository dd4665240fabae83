"""Bringing a choice into a range of costs by pruning, or adding, the blocks whose turn it is.

The rule is greedy: while the cost is too high, prune the block with the least worth per cost; while it is too low, add
the one with the most. Blocks inside layers keep their worth while others go, so a whole run of them is taken at once.
"""

from __future__ import annotations

import numpy as np

from slm_ray.search.axes import FloatArray, IntArray
from slm_ray.search.moves import PER_LAYER, MoveFinder, Moves
from slm_ray.search.priorities import Priorities
from slm_ray.search.sizes import Choice, ChoiceSizes, CostModel


def settle(choice: Choice, cost: CostModel, priorities: Priorities, low: int, high: int) -> bool:
    """Change a choice, in place, until its cost is in ``low..high``.

    Every step brings the cost nearer and none jumps over the range, so this ends.
    """
    finder = MoveFinder(choice, cost, priorities)
    while True:
        sizes = choice.sizes()
        now = cost.of_sizes(sizes)
        if low <= now <= high:
            return True
        grow = now < low
        need, slack = (low - now, high - now) if grow else (now - high, now - low)
        steady, others = finder.split(sizes, grow)
        steady = steady.take(np.argsort(_urgency(steady, grow), kind="stable"))
        taken = _run(steady, others, _exact_costs(steady, cost, sizes, choice, grow), need, grow)
        taken = taken or _one(Moves.join([steady, others]), need, slack, grow)
        if taken is None:
            return False
        taken.apply(choice, grow)


def _urgency(moves: Moves, grow: bool) -> FloatArray:
    return -moves.density if grow else moves.density


def _run(steady: Moves, others: Moves, costs: IntArray, need: int, grow: bool) -> Moves | None:
    """The steady steps that come before any other, as many as stay short of the need."""
    first = _urgency(others, grow).min() if len(others) else np.inf
    urgent = int(np.searchsorted(_urgency(steady, grow), first, side="right"))
    short = int(np.searchsorted(np.cumsum(costs), need, side="left"))
    count = min(urgent, short)
    return steady.take(np.arange(count)) if count else None


def _exact_costs(steady: Moves, cost: CostModel, sizes: ChoiceSizes, choice: Choice, grow: bool) -> IntArray:
    """What each step costs when all before it are taken: a sub-layer's first, or last, block brings its norm."""
    costs = steady.unit_cost.copy()
    rates = cost.rates(sizes.hidden)
    for name, fixed in zip(PER_LAYER, (rates.attention, rates.mlp), strict=True):
        places = np.flatnonzero(steady.is_of(name))
        if not fixed or not len(places) or (not grow and choice.axes[name].least):
            continue
        rows = steady.row[places]
        if grow:
            empty = choice.masks[name].sum(axis=1) == 0
            seen, first = np.unique(rows, return_index=True)
            costs[places[first[empty[seen]]]] += fixed
        else:
            _, last = np.unique(rows[::-1], return_index=True)
            costs[places[len(rows) - 1 - last]] += fixed
    return costs


def _one(moves: Moves, need: int, slack: int, grow: bool) -> Moves | None:
    """The most urgent step; if that jumps over the range, the most urgent that lands in it, else that stays short."""
    moves = moves.take(moves.ready)
    moves = moves.take(np.argsort(_urgency(moves, grow), kind="stable"))
    if len(moves) and moves.cost[0] <= slack:
        return moves.take(np.arange(1))
    for fitting in ((moves.cost >= need) & (moves.cost <= slack), moves.cost < need):
        if fitting.any():
            return moves.take(np.flatnonzero(fitting)[:1])
    return None
