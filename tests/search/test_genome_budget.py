import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from genome_cases import (
    ALL_SPACES,
    LENGTH,
    QUANTITIES,
    TEACHERS,
    budget_of,
    cost_of,
    genome_of,
    largest_step,
    random_genes,
    scores_of,
    space_of,
)

from slm_ray.config.errors import UserError
from slm_ray.models.starts import first_n
from slm_ray.records.budget import Budget, measure_cost
from slm_ray.records.cost import num_params
from slm_ray.search.genome import Genome
from slm_ray.search.space import load_space
from tests.references import every_cost, greedy_ranking

SMOL = TEACHERS["smollm2-135m"]
# Small enough to try all genes of: both kinds of choice, smaller last blocks, with and without layers that may go.
SMALL_SPACES = {
    "subsets": space_of(
        layers={"select": "subset"},
        heads={"per": "layer", "select": "count"},
        neurons={"per": "layer", "select": "subset", "step": 96},
    ),
    "counts": space_of(
        hidden={"select": "count", "step": 64},
        layers={"select": "count", "least": 2},
        heads={"per": "layer", "select": "count", "least": 1},
        neurons={"per": "model", "select": "count", "step": 64},
    ),
    "queries": space_of(heads={"per": "layer", "select": "count"}, queries={"per": "layer"}),
    "model-wide": space_of(
        hidden={"select": "subset", "step": 64},
        layers={"select": "subset"},
        heads={"per": "model", "select": "count"},
        queries={"per": "model"},
        neurons={"per": "model", "select": "subset", "step": 64},
    ),
}


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("teacher", ["smollm2-135m", "tiny-mha"])
@pytest.mark.parametrize("space", ALL_SPACES)
def test_repair_is_always_inside_the_budget(space, teacher, quantity):
    genome = genome_of(ALL_SPACES[space], TEACHERS[teacher])
    for low, high in ((0.0, 0.7), (0.45, 0.5)):
        budget = budget_of(genome, quantity, low, high)
        try:
            genome.check_budget(budget, LENGTH)
        except UserError:
            with pytest.raises(UserError, match="no sub-network in space"):
                genome.repair(genome.upper, budget, LENGTH)
            continue
        for genes in random_genes(genome, 3, 2):
            repaired = genome.repair(genes, budget, LENGTH)
            assert budget.holds(cost_of(genome, repaired, quantity))
            assert np.array_equal(genome.repair(genes, budget, LENGTH), repaired)
            if budget.holds(genome.cost(genes, quantity, LENGTH)):
                assert np.array_equal(repaired, genes)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("teacher", ["tiny-gqa", "tiny-mha"])
@pytest.mark.parametrize("space", SMALL_SPACES)
def test_a_budget_is_possible_exactly_when_some_genes_fit(space, teacher, quantity):
    genome = genome_of(SMALL_SPACES[space], TEACHERS[teacher])
    costs = every_cost(genome, quantity, LENGTH)
    assert genome.reach(quantity, LENGTH) == (costs[0], costs[-1])
    chosen = costs[:: max(1, len(costs) // 10)]
    start = random_genes(genome, 4, 2)
    for cost in chosen:
        budget = Budget(quantity, cost, cost)
        genome.check_budget(budget, LENGTH)
        for genes in start:
            assert cost_of(genome, genome.repair(genes, budget, LENGTH), quantity) == cost
        assert cost_of(genome, genome.random(np.random.default_rng(cost), budget, LENGTH), quantity) == cost
    for below, above in itertools.pairwise(costs):
        if below in chosen and above > below + 1:
            with pytest.raises(UserError, match=f"are {below:,} .* and {above:,} "):
                genome.check_budget(Budget(quantity, below + 1, above - 1), LENGTH)


def test_impossible_budgets_say_what_can_be_reached():
    depth = genome_of("depth", SMOL)
    least, most = depth.reach("params", LENGTH)
    assert most == num_params(SMOL) == 134_515_008
    for budget, fix in ((Budget("params", 0, least - 1), "higher"), (Budget("params", most + 1, 2 * most), "lower")):
        message = rf"reaches {least:,} .* to 134,515,008 \(135M\); choose a {fix} budget"
        with pytest.raises(UserError, match=message):
            depth.check_budget(budget, LENGTH)
    layer = (most - least) // 29
    hole = Budget("params", least + 3 * layer + 1, least + 4 * layer - 1)
    for call in (
        lambda: depth.check_budget(hole, LENGTH),
        lambda: depth.repair(depth.upper, hole, LENGTH),
        lambda: depth.random(np.random.default_rng(0), hole, LENGTH),
        lambda: depth.ranked(hole.high, hole, LENGTH),
    ):
        with pytest.raises(
            UserError, match=re.escape(f"{least + 3 * layer:,} (") + ".* and " + f"{least + 4 * layer:,}"
        ):
            call()


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("teacher", ["tiny-gqa", "tiny-mha"])
@pytest.mark.parametrize("with_layers", [True, False])
def test_ranked_is_the_naive_greedy(teacher, quantity, with_layers):
    teacher = TEACHERS[teacher]
    axes = {"layers": {"select": "subset"}} if with_layers else {}
    space = space_of(
        **axes, heads={"per": "layer", "select": "subset"}, neurons={"per": "layer", "select": "subset", "step": 16}
    )
    compared = 0
    for seed in range(6):
        scores = scores_of(teacher, seed)
        genome = Genome(space, teacher, {"taylor": scores})
        for share in (0.9, 0.6, 0.3):
            budget = budget_of(genome, quantity, 0.0, share)
            spec = genome.decode(genome.ranked(budget.high, budget, LENGTH))
            kept = [(layer.source, set(layer.kv_heads), set(layer.neurons)) for layer in spec.layers]
            naive = greedy_ranking(teacher, scores, 16, budget.high, quantity, LENGTH, with_layers)
            if any(heads for _, heads, _ in naive):  # it knows nothing of the rescue of attention
                assert kept == naive
                compared += 1
    assert compared > 9


@pytest.mark.parametrize("space", ALL_SPACES)
@pytest.mark.parametrize("comparable", [True, False])
def test_ranked_meets_its_target_inside_the_budget(space, comparable):
    genome = genome_of(ALL_SPACES[space], SMOL, comparable=comparable)
    budget = budget_of(genome, "params", 0.2, 0.8)
    step = largest_step(genome, "params") + 2 * SMOL.hidden_size * SMOL.num_hidden_layers
    for share in (0.3, 0.6, 0.79):
        target = round(budget.low + share * (budget.high - budget.low))
        cost = cost_of(genome, genome.ranked(target, budget, LENGTH), "params")
        assert budget.holds(cost) and target - step <= cost <= target
    for outside in (0, 10**12):
        assert budget.holds(cost_of(genome, genome.ranked(outside, budget, LENGTH), "params"))


def test_ranks_alone_take_the_same_share_of_every_layer():
    scores = scores_of(SMOL, comparable=False)
    scores.neurons[:] *= np.logspace(-6, 6, 30)[:, None]  # a scale that differs from layer to layer must not matter
    space = space_of(neurons={"per": "layer", "select": "subset"})
    genome = Genome(space, SMOL, {"taylor": scores})
    budget = budget_of(genome, "params", 0.0, 0.5)
    spec = genome.decode(genome.ranked(budget.high, budget, LENGTH))
    widths = [len(layer.neurons) for layer in spec.layers]
    assert len(widths) == 30 and max(widths) - min(widths) <= 64


@pytest.mark.parametrize("space", ALL_SPACES)
def test_random_genes_fill_the_budget_and_repeat_with_the_seed(space):
    genome = genome_of(ALL_SPACES[space], SMOL)
    budget = budget_of(genome, "params", 0.2, 0.8)
    first, again = ([genome.random(np.random.default_rng(s), budget, LENGTH) for s in range(8)] for _ in range(2))
    costs = np.array([cost_of(genome, genes, "params") for genes in first])
    assert all(map(budget.holds, costs.tolist()))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.ptp(costs) > 0.4 * (budget.high - budget.low)
    aimed = [genome.random(np.random.default_rng(s), budget, LENGTH, target=int(costs[0])) for s in range(3)]
    spread = largest_step(genome, "params") + 2 * SMOL.hidden_size * SMOL.num_hidden_layers
    assert all(abs(cost_of(genome, genes, "params") - costs[0]) <= spread for genes in aimed)


def test_random_genes_owe_nothing_to_importance():
    scores = scores_of(SMOL)
    genome = genome_of("fine", SMOL)
    budget = budget_of(genome, "params", 0.4, 0.5)
    kept, worth = 0.0, 0.0
    for seed in range(20):
        genes = genome.repair(genome.random(np.random.default_rng(seed), budget, LENGTH), budget, LENGTH)
        for layer in genome.decode(genes).layers:
            kept += len(layer.neurons)
            worth += scores.neurons[layer.source, list(layer.neurons)].sum()
    assert worth / kept == pytest.approx(scores.neurons.mean(), rel=0.05)
    dropped_at_random = genome.repair(genome.upper, budget, LENGTH, np.random.default_rng(1))
    assert not np.array_equal(dropped_at_random, genome.repair(genome.upper, budget, LENGTH))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_first_n_is_the_largest_prefix_that_fits(quantity):
    depth = genome_of("depth", SMOL)
    costs = [depth.cost(np.array([n]), quantity, LENGTH) for n in range(1, 31)]
    budget = Budget(quantity, 0, costs[19])
    assert first_n(SMOL, budget, LENGTH) == depth.decode(np.array([20]))
    assert first_n(SMOL, budget, LENGTH, target_cost=costs[11] + 1) == depth.decode(np.array([12]))
    assert first_n(SMOL, budget, LENGTH, target_cost=costs[0] - 1) == depth.decode(np.array([20]))
    with pytest.raises(UserError, match="first layer alone"):
        first_n(SMOL, Budget(quantity, 0, costs[0] - 1), LENGTH)


@pytest.mark.parametrize("space", ["coarse", "fine_uniform", "model-wide"])
def test_sizes_that_the_plain_class_can_express_are_preferred(space):
    def is_plain(sizes):
        return sizes.is_uniform and sizes.hidden_size % sizes.layers[0].num_attention_heads == 0

    given = SMALL_SPACES.get(space) or load_space(space)
    scores = scores_of(SMOL)
    genome = Genome(given, SMOL, {order: scores for order in given.orders()}, is_plain=is_plain)
    budget = budget_of(genome, "params", 0.3, 0.8)
    any_sizes = Genome(given, SMOL, {order: scores for order in given.orders()})
    drawn = [genome.random(np.random.default_rng(seed), budget, LENGTH) for seed in range(20)]
    repaired = [genome.repair(genes, budget, LENGTH) for genes in random_genes(genome, 8, 10)]
    for genes in [*drawn, *repaired, genome.ranked(budget.high, budget, LENGTH)]:
        assert is_plain(genome.architecture(genes)) and budget.holds(cost_of(genome, genes, "params"))
        assert np.array_equal(genome.repair(genes, budget, LENGTH), genes)
    odd = [any_sizes.random(np.random.default_rng(seed), budget, LENGTH) for seed in range(20)]
    assert not all(is_plain(any_sizes.architecture(genes)) for genes in odd)
    for genes in odd:
        exact = Budget("params", *[any_sizes.cost(genes, "params", LENGTH)] * 2)
        assert exact.holds(genome.cost(genome.repair(genes, exact, LENGTH), "params", LENGTH))  # where none are plain


@pytest.mark.parametrize("quantity", ["flops", "kv_bytes"])
@pytest.mark.parametrize("space", ["fine", "fine_uniform", "coarse_layerwise"])
def test_layers_with_windows_shorter_than_the_context_cost_less(space, quantity):
    local = [replace(layer, sliding_window=0 if number % 6 == 5 else 16) for number, layer in enumerate(SMOL.layers)]
    teacher = replace(SMOL, layers=tuple(local))
    genome = genome_of(space, teacher)
    budget = budget_of(genome, quantity, 0.4, 0.6)
    for drawn in random_genes(genome, 0, 8):
        genes = genome.repair(drawn, budget, LENGTH)
        exact = cost_of(genome, genes, quantity)
        assert genome.cost(genes, quantity, LENGTH) == exact and budget.holds(exact)
    assert measure_cost(teacher, quantity, LENGTH) < measure_cost(SMOL, quantity, LENGTH)
