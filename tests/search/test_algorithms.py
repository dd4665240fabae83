import numpy as np
import pytest

from slm_ray.search.algorithms import make_algorithm, seed_genes
from slm_ray.search.pareto import hypervolume
from slm_ray.search.registry import ALGORITHMS
from slm_ray.search.stack import GenomeStack
from tests.search.test_plan import stack_of

PAIRS = sorted(set(ALGORITHMS) - {"ga"})


def quality(stack, genes):
    """A smooth made-up loss with the guide's own priorities nowhere in it: every layer has its own best width."""
    layers = stack.architecture(genes).layers
    wanted = np.linspace(40, 120, len(layers))
    return sum(abs(layer.intermediate_size - want) / 50 for layer, want in zip(layers, wanted, strict=True)) + 1


def search(name, stack, seed, generations, objectives=2, population=12):
    """All objectives told, generation by generation."""
    algorithm = make_algorithm(name, stack, ("perplexity", "params")[:objectives], population, seed)
    told, asked = [], []
    for _ in range(generations):
        proposals = algorithm.ask()
        if not proposals:
            break
        values = np.array([[quality(stack, one.genes), stack.cost(one.genes)][:objectives] for one in proposals])
        algorithm.tell(values)
        asked.extend(one.genes for one in proposals)
        told.append(values)
    return np.concatenate(told), asked


def test_a_search_beats_random_draws_of_as_many_candidates():
    stack = stack_of()
    ideal, nadir = [0, stack.reach()[0]], [6, stack.reach()[1]]

    def reached(which, seed):
        values, _ = search(which, stack, seed, 18)
        return hypervolume(values[:200], ideal, nadir)

    ours, drawn = (np.mean([reached(name, seed) for seed in range(3)]) for name in ("nsga2", "random"))
    assert ours > drawn


def test_one_objective_improves():
    values, _ = search("ga", stack_of(), 0, 20, objectives=1)
    assert values.min() < values[:12].min()


def test_the_sweep_repeats_nothing_and_is_ranked_alone():
    stack = stack_of()
    _, asked = search("importance", stack, 0, 3)
    assert len({genes.tobytes() for genes in asked}) == len(asked) > 30
    assert all(np.array_equal(stack.ranked(genes[0], stack.cost(genes)), genes) for genes in asked)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_seeds_reach_from_end_to_end_and_use_every_ranking(count):
    stack = stack_of()
    seeds = seed_genes(stack, count)
    low, high = stack.reach()
    assert 1 <= len(seeds) <= count
    assert stack.cost(seeds[0]) > 0.95 * high
    if count >= 4:
        assert min(map(stack.cost, seeds)) < low + 0.1 * (high - low)
        assert {int(genes[0]) for genes in seeds} == {0, 1}


def test_each_ranking_is_a_seed_at_its_own_sizes():
    stack = stack_of()
    low, high = stack.reach()
    sized = GenomeStack([*stack.genomes, stack.genomes[0]], stack.budget, stack.sequence_length,
                        [high, low, (low + high) // 2])  # fmt: skip
    seeds = seed_genes(sized, 9)
    assert [int(genes[0]) for genes in seeds] == [0, 0, 0, 2, 2, 2, 1, 1, 1]
    assert sized.nearest(low) == [1] and stack.nearest(low) == [0, 1]
