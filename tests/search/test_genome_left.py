"""Genomes of a teacher that has only some of its units left: no other is ever kept, whatever the genes went through."""

import itertools

import numpy as np
import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.budget import Budget, measure_cost
from slm_ray.search.genome import Genome
from slm_ray.search.milp import CutPrices, IntegerProgram
from slm_ray.search.space import load_space
from slm_ray.search.stack import GenomeStack
from slm_ray.search.variation import Variation
from tests.search.genome_cases import LENGTH, QUERY_SPACES, TEACHERS, scores_of

SPACES = {"fine": load_space("fine"), "depth": load_space("depth"), "queries": QUERY_SPACES["queries per layer"]}
CASES = [("fine", "smollm2-135m"), ("fine", "tiny-gqa"), ("depth", "gpt2"), ("queries", "tiny-gqa")]


def bound(space, teacher, left=None, seed=0):
    scores = scores_of(teacher, seed)
    return Genome(space, teacher, {order: scores for order in space.orders()}, guide=scores, left=left)


def cut_once(space_name, teacher_name):
    """A space, a teacher, and what a first search of it left: about seven tenths, at random."""
    space, teacher = SPACES[space_name], TEACHERS[teacher_name]
    whole = measure_cost(teacher, "params", LENGTH)
    first = bound(space, teacher)
    budget = Budget("params", int(0.6 * whole), int(0.85 * whole))
    return space, teacher, first.decode(first.random(np.random.default_rng(5), budget, LENGTH))


def is_within(spec, left):
    layers = {layer.source: layer for layer in left.layers}
    return set(spec.hidden) <= set(left.hidden) and all(
        layer.source in layers
        and set(layer.kv_heads) <= set(layers[layer.source].kv_heads)
        and set(layer.flat_query_heads) <= set(layers[layer.source].flat_query_heads)
        and set(layer.neurons) <= set(layers[layer.source].neurons)
        for layer in spec.layers
    )


@pytest.mark.parametrize(("space_name", "teacher_name"), CASES)
def test_all_that_genes_stand_for_is_left(space_name, teacher_name):
    space, teacher, left = cut_once(space_name, teacher_name)
    genome = bound(space, teacher, left, seed=1)  # other scores: units that are gone may rank first
    least, most = genome.reach("params", LENGTH)
    assert most <= measure_cost(left.architecture_in(teacher), "params", LENGTH)
    budget = Budget("params", least, most)
    stack, rng = GenomeStack([genome], budget, LENGTH), np.random.default_rng(0)
    variation = Variation(stack)
    found = [stack.random(rng) for _ in range(6)] + [stack.ranked(0, int(at)) for at in np.linspace(least, most, 5)]
    found += [variation.mutate(genes, rng) for genes in found for _ in range(3)]
    found += [variation.cross(a, b, rng) for a, b in itertools.pairwise(found)]
    bits = rng.integers(genome.lower, genome.upper, endpoint=True)
    found.append(stack.repair(np.concatenate([[0], bits])))
    for genes in found:
        spec = stack.decode(genes)
        assert is_within(spec, left)
        cost = measure_cost(spec.architecture_in(teacher), "params", LENGTH)
        assert cost == stack.cost(genes) and budget.holds(cost)
        assert np.array_equal(stack.from_text(stack.to_text(genes)), genes)
        assert stack.decode(np.concatenate([[0], genome.encode(spec)])) == spec


def test_the_whole_of_what_is_left_is_one_of_its_candidates():
    space, teacher, left = cut_once("fine", "smollm2-135m")
    genome = bound(space, teacher, left, seed=1)
    assert genome.decode(genome.upper) == left  # its blocks are those of the space, so nothing is lost
    with pytest.raises(UserError, match="choose a lower budget"):
        whole = measure_cost(teacher, "params", LENGTH)
        genome.check_budget(Budget("params", int(0.95 * whole), whole), LENGTH)


def test_an_integer_program_keeps_what_is_left():
    space, teacher, left = cut_once("fine", "tiny-gqa")
    genome, rng = bound(space, teacher, left, seed=1), np.random.default_rng(0)
    axes, count = genome.bound_axes(), teacher.num_hidden_layers
    rows = [np.sort(rng.random((count, axes[name].blocks + 1)))[:, ::-1] for name in ("heads", "neurons")]
    program = IntegerProgram(genome, CutPrices(rows[0], rows[1], 2 + rng.random(count)), "params", LENGTH)
    least, most = genome.reach("params", LENGTH)
    for high in np.linspace(least, most, 6).astype(int).tolist():
        genes, _ = program.solve(least, high)
        spec = genome.decode(genes)
        assert is_within(spec, left)
        assert least <= measure_cost(spec.architecture_in(teacher), "params", LENGTH) <= high
