import numpy as np
import pytest

from slm_ray.search.stack import GenomeStack
from slm_ray.search.variation import Variation
from tests.search.genome_cases import LENGTH, QUERY_SPACES, SPACES, TEACHERS, budget_of, genome_of

CASES = [*SPACES, *QUERY_SPACES]


def stack_of(case, quantity="params", low=0.2, high=0.8, seeds=(0, 1)):
    genomes = [genome_of(QUERY_SPACES.get(case, case), TEACHERS["tiny-gqa"], seed) for seed in seeds]
    return GenomeStack(genomes, budget_of(genomes[0], quantity, low, high), LENGTH)


def check(stack, genes):
    assert genes.dtype == np.int64 and np.all(genes >= stack.lower) and np.all(genes <= stack.upper)
    assert stack.budget.low <= stack.cost(genes) <= stack.budget.high


@pytest.mark.parametrize("quantity", ["params", "flops", "kv_bytes"])
@pytest.mark.parametrize("case", CASES)
def test_children_are_legal_and_parents_untouched(case, quantity):
    try:
        stack = stack_of(case, quantity)
    except ValueError:
        pytest.skip("the space has no sub-network in that range")
    variation, rng = Variation(stack), np.random.default_rng(0)
    parents = [stack.random(rng) for _ in range(10)]
    before = [parent.copy() for parent in parents]
    for number in range(40):
        first, second = parents[number % 10], parents[(3 * number + 1) % 10]
        check(stack, variation.mutate(first, rng))
        check(stack, variation.cross(first, second, rng))
    assert all(np.array_equal(a, b) for a, b in zip(parents, before, strict=True))
    assert all(np.array_equal(stack.from_text(stack.to_text(genes)), genes) for genes in parents)


@pytest.mark.parametrize("case", ["fine", "coarse_layerwise", "queries per layer"])
def test_mutation_reaches_sizes_and_rankings_and_neighbours(case):
    stack = stack_of(case)
    variation, rng = Variation(stack), np.random.default_rng(0)
    parent = stack.random(rng)
    children = [variation.mutate(parent, rng) for _ in range(300)]
    assert len({child.tobytes() for child in children}) > 10
    assert len({int(child[0]) for child in children}) == 2
    costs = np.array([stack.cost(child) for child in children])
    near = (costs <= stack.cost(parent)) & (costs >= 0.8 * stack.cost(parent))
    assert near.mean() > 0.5  # most move budget around at the parent's size
    assert np.ptp(costs) > 0.3 * (stack.reach()[1] - stack.reach()[0])  # some go elsewhere
