import numpy as np
import pytest
from genome_cases import (
    ALL_SPACES,
    LENGTH,
    QUANTITIES,
    QUERY_SPACES,
    TEACHERS,
    gene_of,
    genome_of,
    random_genes,
    scores_of,
)

from slm_ray.config.errors import UserError
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.budget import measure_cost
from slm_ray.records.cost import num_params
from slm_ray.records.subnet import LayerUnits, full_subnet
from slm_ray.search.genome import Genome
from slm_ray.search.space import load_space


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("space", ALL_SPACES)
def test_genes_decode_to_legal_subnets_of_known_size_and_read_back_from_text(space, teacher):
    genome, whole = genome_of(ALL_SPACES[space], TEACHERS[teacher]), TEACHERS[teacher]
    for genes in random_genes(genome, 1, 40 if teacher.startswith("tiny") else 6):
        architecture = genome.decode(genes).architecture_in(whole)
        assert architecture == genome.architecture(genes)
        for quantity in QUANTITIES:
            assert genome.cost(genes, quantity, LENGTH) == measure_cost(architecture, quantity, LENGTH)
        assert np.array_equal(genome.from_text(genome.to_text(genes)), genes)
    assert genome.decode(genome.upper) == full_subnet(whole)
    assert genome.reach("params", LENGTH)[1] == num_params(whole)
    assert [gene for group in genome.groups for gene in range(group.start, group.stop)] == list(range(genome.num_genes))
    for group in genome.groups:
        axis = genome.space.axes[group.axis]
        assert (group.layer is not None) == (axis.per == "layer") and group.is_count == (axis.select == "count")


def test_scored_order_keeps_the_best_units_of_each_layer():
    teacher = TEACHERS["smollm2-135m"]
    scores = scores_of(teacher)
    genome = Genome(load_space("coarse_layerwise"), teacher, {"taylor": scores})
    genes = genome.upper.copy()
    genes[1] = 12
    spec = genome.decode(genes)
    assert {layer.source for layer in spec.layers} == set(np.argsort(-scores.layers)[:12].tolist())
    layer = spec.layers[4].source
    genes[gene_of(genome, "neurons", layer)] = 3
    genes[gene_of(genome, "heads", layer)] = 1
    units = genome.decode(genes).layers[4]
    assert set(units.neurons) == set(np.argsort(-scores.neurons[layer])[:192].tolist())
    assert units.kv_heads == (int(np.argmax(scores.kv_heads[layer])),)


def test_each_key_value_head_keeps_its_best_query_heads():
    teacher = TEACHERS["smollm2-135m"]
    scores = scores_of(teacher)
    genome = genome_of(QUERY_SPACES["queries per model"], teacher)
    genes = genome.upper.copy()
    genes[gene_of(genome, "queries")] = 2
    for source, layer in enumerate(genome.decode(genes).layers):
        for kv_head, group in zip(layer.kv_heads, layer.query_heads, strict=True):
            mine = np.arange(3) + 3 * kv_head
            best = mine[np.argsort(-scores.query_heads[source, mine])[:2]]
            assert group == tuple(sorted(best.tolist()))


def test_attention_is_never_lost_and_empty_layers_are_left_out():
    teacher = TEACHERS["tiny-gqa"]
    scores = scores_of(teacher)
    genome = genome_of("fine", teacher)
    nothing = genome.lower.copy()
    best = int(np.argmax(scores.layers))
    head = int(np.argmax(scores.kv_heads[best]))
    assert genome.decode(nothing).layers == (LayerUnits(best, (head,), ((2 * head, 2 * head + 1),), ()),)
    for group in genome.groups:
        if group.axis == "layers" or (group.axis == "neurons" and group.layer == 1):
            nothing[group.start : group.stop] = 1
    layers = {layer.source: layer for layer in genome.decode(nothing).layers}
    assert set(layers) == {best, 1}
    assert len(layers[1].neurons) == 160 and len(layers[best].kv_heads) == 1


def test_text_of_another_genome_or_length_or_range_is_refused():
    fine, counts = (genome_of(name, TEACHERS["tiny-gqa"]) for name in ("fine", "coarse_layerwise"))
    good, text = fine.to_text(fine.upper), counts.to_text(counts.upper)
    assert good == "layers=xe;heads=xfc;neurons=xff8" and text == "hidden=2;layers=3;heads=2,2,2;neurons=3,3,3"
    for wrong in ("", "layers=x7", "layers=x7;heads=x3f;neurons=1,2", "heads=xfc;layers=xe;neurons=xff8"):
        with pytest.raises(UserError, match="another"):
            fine.from_text(wrong)
    for wrong in (good + "0", good.replace("xe", "xf"), good.replace("xff8", "xffg"), good.replace("xff8", "xff")):
        with pytest.raises(UserError, match="genes of"):
            fine.from_text(wrong)
    for wrong in (text.replace("2,2,2", "2,2"), text.replace("2,2,2", "2,2,3"), text.replace("2,2,2", "2,0,2")):
        with pytest.raises(UserError, match=r"genes of heads must be 3 numbers within 1\.\.2"):
            counts.from_text(wrong)


def test_teachers_and_scores_that_do_not_fit():
    teacher = TEACHERS["tiny-gqa"]
    with pytest.raises(ValueError, match="needs taylor scores"):
        Genome(load_space("fine"), teacher)
    with pytest.raises(ValueError, match="of shape"):
        Genome(load_space("fine"), teacher, {"taylor": scores_of(TEACHERS["tiny-mha"])})
    broken = scores_of(teacher)
    broken.neurons[0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        Genome(load_space("fine"), teacher, {"taylor": broken})
    uneven = Architecture(teacher.structure, 96, (*teacher.layers, LayerShape(4, 2, 64)))
    with pytest.raises(UserError, match="whose layers all have the same sizes"):
        Genome(load_space("depth"), uneven)
    small = Architecture(teacher.structure, 32, teacher.layers)
    with pytest.raises(UserError, match=r"axes\.hidden\.least must be at most the teacher's 32, got 64"):
        genome_of("coarse", small)
