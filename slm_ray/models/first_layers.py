"""Inheritune's student (arXiv 2404.08634): the first layers of the teacher, whole."""

from __future__ import annotations

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import QUANTITIES, Budget, measure_cost
from slm_ray.records.subnet import SubnetSpec, full_subnet


def first_n(teacher: Architecture, budget: Budget, sequence_length: int, target_cost: int | None = None) -> SubnetSpec:
    """The first n whole layers, n as large as a cost allows.

    Args:
        teacher: The teacher's sizes.
        budget: Its upper end is never exceeded. Its lower end is not asked for: whole layers come in large steps.
        sequence_length: The context at which FLOPs are counted.
        target_cost: The cost to stay at or below, where even one layer does; else only the budget counts.

    Raises:
        UserError: Even one layer costs more than the budget.
    """
    whole = full_subnet(teacher)
    prefixes = [SubnetSpec(whole.hidden, whole.layers[:count]) for count in range(1, teacher.num_hidden_layers + 1)]
    costs = [measure_cost(prefix.architecture_in(teacher), budget.quantity, sequence_length) for prefix in prefixes]
    for ceiling in (min(budget.high, budget.high if target_cost is None else target_cost), budget.high):
        if fitting := [prefix for prefix, cost in zip(prefixes, costs, strict=True) if cost <= ceiling]:
            return fitting[-1]
    raise UserError(
        f"even the teacher's first layer alone has {format_count(costs[0])} {QUANTITIES[budget.quantity]}, more than"
        f" the budget's {format_count(budget.high)}: choose a higher budget"
    )
