"""The end of a search: the front and its baselines on held-out text, the winners as models, the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.models.starts import first_n
from slm_ray.records.budget import Budget
from slm_ray.records.search import Measurement, ModelCost, ModelShape, Trial
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.search.genome import Genome
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.plan import SearchPlan
from slm_ray.search.rank import Ranking
from slm_ray.search.stack import GenomeStack
from slm_ray.search.trained import Trained


@dataclass(frozen=True)
class Chosen:
    """A sub-network to be measured on held-out text, and what is known of it."""

    name: str
    spec: SubnetSpec
    entry: dict[str, Any]


def pick_winners(front: Sequence[Trial], quantity: str, count: int) -> list[int]:
    """Members of the front to extract: the best first, then sizes spread evenly down to the smallest.

    Args:
        front: Records, best first objective first.
        quantity: The cost that sizes are counted in.
        count: How many to pick at most.

    Returns:
        Positions in ``front``; the first is the winner.
    """
    if not front:
        return []
    costs = [record.cost[quantity] for record in front]
    wanted = np.linspace(costs[0], min(costs), count) if count > 1 else [costs[0]]
    picked: list[int] = []
    for cost in wanted:
        free = [index for index in range(len(front)) if index not in picked]
        if free:
            picked.append(min(free, key=lambda index: (abs(costs[index] - cost), index)))
    return picked


def describe(inputs: SearchInputs, spec: SubnetSpec, sequence_length: int) -> dict[str, Any]:
    """Sizes and costs of a sub-network, as results hold them."""
    architecture = spec.architecture_in(inputs.architecture)
    sources = tuple(layer.source for layer in spec.layers)
    return {
        "architecture": ModelShape.of(architecture, sources).to_json(),
        "cost": ModelCost.of(architecture, sequence_length).to_json(),
    }


def baselines_at(
    inputs: SearchInputs, stack: GenomeStack, ranking: Ranking, cost: int, sequence_length: int, seed: int
) -> list[Chosen]:
    """First-n layers, a random selection and a one-shot importance ranking, at or below the winner's cost."""
    quantity = inputs.budget.quantity
    found: list[tuple[str, SubnetSpec]] = []
    ceiling = Budget(quantity, 0, cost)
    try:
        found.append(("first-n", first_n(inputs.architecture, ceiling, sequence_length, cost)))
    except UserError:
        pass  # not even one layer fits: there is no such baseline at this size
    least, _ = stack.genomes[0].reach(quantity, sequence_length)
    below = Budget(quantity, least, cost)
    genes = stack.genomes[0].random(np.random.default_rng(seed), below, sequence_length, cost)
    found.append(("random", stack.genomes[0].decode(genes)))
    if ranking.one_shot is not None and "taylor" in inputs.space.orders():
        scores = dict(ranking.others) | {"taylor": ranking.one_shot}
        orders = {order: scores[order] for order in inputs.space.orders() if order in scores}
        genome = Genome(inputs.space, inputs.architecture, orders, guide=ranking.one_shot)
        found.append(("importance", genome.decode(genome.ranked(cost, below, sequence_length))))
    return [Chosen(name, spec, {"name": name} | describe(inputs, spec, sequence_length)) for name, spec in found]


def front_entries(
    plan: SearchPlan, front: Sequence[Trial], winners: Sequence[int], trained: Mapping[int, Trained]
) -> list[Chosen]:
    """The front as results hold it, without its held-out figures yet; finalists with what training gave, by trial."""
    chosen = []
    for position, record in enumerate(front):
        measured = record.measurements.get("perplexity")
        entry = {
            "trial": record.trial,
            "digest": record.digest,
            "winner": winners.index(position) if position in winners else None,
            "architecture": record.architecture.to_json(),
            "cost": record.cost.to_json(),
            "calibration_perplexity": measured.value if measured else None,
            "calibration_stderr": measured.stderr if measured else None,
            "objectives": record.objectives,
        }
        if record.trial in trained:
            entry["short_training"] = trained[record.trial].to_record()
        chosen.append(Chosen(f"trial {record.trial}", plan.stack.decode(plan.stack.from_text(record.genes)), entry))
    return chosen


def teacher_entry(inputs: SearchInputs, sequence_length: int) -> Chosen:
    """The teacher as results hold it."""
    spec = full_subnet(inputs.architecture)
    entry = {
        "name": inputs.teacher.name,
        "family": inputs.architecture.structure.family,
        "digest": inputs.teacher.digest,
        "licence": inputs.teacher.licence,
    }
    return Chosen("teacher", spec, entry | describe(inputs, spec, sequence_length))


def perplexity_fields(text: str, measured: Measurement) -> dict[str, float | None]:
    """A perplexity as results hold it.

    Args:
        text: What the text is called there, such as ``held_out``.
        measured: The measurement.
    """
    stderr = None if measured.stderr is None else round(measured.stderr, 4)
    return {f"{text}_perplexity": round(measured.value, 4), f"{text}_stderr": stderr}
