"""Learned scores: score, prune, and score again with the pruned units still asking to return."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slm_ray.models.gates import GateGradients, Masks
from slm_ray.models.importance import taylor_change
from slm_ray.models.scores import UnitScores
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import Budget, measure_cost
from slm_ray.search.genome import Genome
from slm_ray.search.space import SearchSpace

# Weight of squared gradients beside first-order terms, at shares of the whole teacher's cost; in between and around, by
# a straight line through its logarithm, and at most the third. The more of a teacher is kept, the more of a first-order
# term is noise; once much is gone, it says which units should come back.
_CURVATURES = {0.7: 2.0, 0.45: 0.25}
_MOST_CURVATURE = 8.0
_FIRST_SIZE = 0.85  # of the whole teacher's cost, to which the first step prunes
_MEMORY = (0.8, 0.95)  # share of the old scores kept at the first and the last step of a size
_RAMP_SHARE = 0.4  # of the steps at a size are spent on coming down to it

Collect = Callable[[int, Masks | None], GateGradients]


@dataclass(frozen=True)
class LearnedScores:
    """The scores that were learned.

    Attributes:
        one_shot: Scores of the whole teacher from the first step alone: the baseline that learning has to beat.
        by_target: One set of scores per target size, in the order of the targets.
    """

    one_shot: UnitScores
    by_target: tuple[UnitScores, ...]


def curvature_at(share: float) -> float:
    """Weight of squared gradients where a share of the teacher's cost is kept."""
    (high, at_high), (low, at_low) = _CURVATURES.items()
    slope = math.log(at_high / at_low) / (high - low)
    return min(_MOST_CURVATURE, at_low * math.exp(slope * max(0.0, share - low)))


def blend(old: UnitScores, new: UnitScores, memory: float) -> UnitScores:
    """``memory * old + (1 - memory) * new``, array by array."""
    fresh = new.arrays()
    mixed = {name: memory * array + (1 - memory) * fresh[name] for name, array in old.arrays().items()}
    return UnitScores.from_arrays(new.method, mixed, comparable=new.comparable)


def target_costs(budget: Budget, reach: tuple[int, int]) -> list[int]:
    """The sizes to learn scores at, largest first: both ends of the budget.

    The upper end alone where they are close together, or where it is the only one that was given: learning at two ends
    leaves each half of the steps, and the best models under a ceiling lie just below it.
    """
    low, high = max(budget.low, reach[0]), min(budget.high, reach[1])
    return [high] if budget.is_ceiling or low > 0.85 * high else [high, low]


def learn_scores(
    space: SearchSpace,
    teacher: Architecture,
    budget_quantity: str,
    sequence_length: int,
    targets: Sequence[int],
    steps: int,
    collect: Collect,
) -> LearnedScores:
    """Learn Taylor scores at each target size, one after the other along a single descent.

    Every step takes the gate gradients of all units, kept and pruned, with the units pruned so far masked; blends the
    expected loss rises into the scores; and prunes the whole teacher anew to the size the step has come down to. A unit
    whose return would lower the loss more than another's presence does comes back.

    Args:
        space: What may be pruned.
        teacher: The teacher's sizes.
        budget_quantity: What sizes are counted in.
        sequence_length: The context at which FLOPs are counted.
        targets: Costs to come down to, descending.
        steps: Steps in all; 1 scores the whole teacher once.
        collect: Gives the gate gradients of a step's tokens under masks.
    """
    kv_heads = teacher.layers[0].num_key_value_heads
    gradients = collect(0, None)
    one_shot = taylor_change(gradients, kv_heads, None)
    if steps == 1:
        return LearnedScores(one_shot, (one_shot,))
    whole = measure_cost(teacher, budget_quantity, sequence_length)
    start = max(_FIRST_SIZE * whole, targets[0])
    scores = taylor_change(gradients, kv_heads, curvature_at(start / whole))
    learned, step = [], 1
    for number, target in enumerate(targets):
        last = steps * (number + 1) // len(targets)
        first, span = step, max(1, last - step)
        while step < last:
            share = (step - first) / max(1, span - 1)
            size = _size_at(target, start, (step - first + 1) / max(1, round(_RAMP_SHARE * span)))
            masks = _prune(space, teacher, budget_quantity, sequence_length, scores, size)
            new = taylor_change(collect(step, masks), kv_heads, curvature_at(size / whole))
            memory = _MEMORY[0] + (_MEMORY[1] - _MEMORY[0]) * share
            scores = blend(scores, new, min(memory, 1 - 1 / (step + 1)))
            step += 1
        learned.append(scores)
        start = target
    return LearnedScores(one_shot, tuple(learned))


def _size_at(target: int, start: float, progress: float) -> int:
    """The size to prune to: on a straight line from ``start`` to the target, which is reached at progress 1."""
    return round(start + (target - start) * min(1.0, progress))


def _prune(
    space: SearchSpace, teacher: Architecture, quantity: str, sequence_length: int, scores: UnitScores, size: int
) -> Masks:
    genome = Genome(space, teacher, {order: scores for order in space.orders()}, guide=scores)
    least, most = genome.reach(quantity, sequence_length)
    genes = genome.ranked(min(max(size, least), most), Budget(quantity, least, most), sequence_length)
    return Masks.of(genome.decode(genes), teacher)
