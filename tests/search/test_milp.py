"""The integer program: exact, within the budget, priced by what cuts do to the teacher; and the searches it begins."""

import itertools
import json

import numpy as np
import pytest
import torch

from slm_ray.config.errors import UserError
from slm_ray.models.cut_scores import POSITION_STEP, CutTeacher, unit_mask
from slm_ray.records.budget import Budget, measure_cost
from slm_ray.records.cost import flops_per_token
from slm_ray.records.subnet import full_subnet
from slm_ray.search.cut_prices import interpolate, levels_of, price_flops
from slm_ray.search.genome import Genome
from slm_ray.search.milp import CutPrices, IntegerProgram
from slm_ray.search.space import Axis, SearchSpace
from tests.models.tiny import NAMES, layer_units, tiny_config, tiny_family, tiny_ids, tiny_model
from tests.references import masked_logits
from tests.search.tiny_run import outcome_of, trials_of


def genome_of(name="llama", heads=0, neurons=0, layers=1):
    axes = {
        "heads": Axis("layer", "subset", "natural", 1, heads),
        "neurons": Axis("layer", "subset", "natural", 8, neurons),
    }
    if layers is not None:
        axes["layers"] = Axis("model", "subset", "natural", 1, layers)
    return Genome(SearchSpace("tiny", "", "natural", axes), tiny_family(name).architecture(tiny_config(name)))


def prices_of(genome, seed):
    axes, rng, count = genome.bound_axes(), np.random.default_rng(seed), genome.teacher.num_hidden_layers
    heads, neurons = (rng.random((count, axes[name].blocks + 1)) for name in ("heads", "neurons"))
    return CutPrices(heads, neurons, 2 * rng.random(count))


def cheapest(genome, prices, quantity, low, high):
    """The least summed price of all sub-networks that keep the first so many blocks, by trying all of them."""
    teacher, best, pairs = genome.teacher, np.inf, list(itertools.product(range(3), range(4)))
    axes = genome.bound_axes()
    for options in itertools.product(*[pairs] * teacher.num_hidden_layers):
        layers, price = [], 0.0
        for source, (heads, blocks) in enumerate(options):
            if not heads and not blocks:
                price += prices.layers[source]
                continue
            price += prices.heads[source, heads] + prices.neurons[source, blocks]
            if heads < axes["heads"].least or blocks < axes["neurons"].least:
                price = np.inf
            layers.append(layer_units(teacher, source, tuple(range(heads)), None, tuple(range(8 * blocks))))
        if price < best and len(layers) >= axes["layers"].least and any(layer.kv_heads for layer in layers):
            shapes = tuple(layer.shape for layer in layers)
            cost = measure_cost(type(teacher)(teacher.structure, teacher.hidden_size, shapes), quantity, 16)
            best = price if low <= cost <= high else best
    return best


@pytest.mark.parametrize("quantity", ["params", "flops", "kv_bytes"])
@pytest.mark.parametrize("least", [(0, 0, 1), (1, 1, 2)])
def test_solutions_are_the_best_there_are_and_within_the_budget(quantity, least):
    genome = genome_of(heads=least[0], neurons=8 * least[1], layers=least[2])
    prices = prices_of(genome, seed=sum(least))
    program = IntegerProgram(genome, prices, quantity, 16)
    lowest, highest = genome.reach(quantity, 16)
    for share in (0.3, 0.6):
        low, high = lowest + (highest - lowest) // 10, int(lowest + share * (highest - lowest))
        genes, price = program.solve(low, high)
        assert price == pytest.approx(cheapest(genome, prices, quantity, low, high), abs=1e-6)
        assert Budget(quantity, low, high).holds(genome.cost(genes, quantity, 16))


def test_no_solution_where_none_fits():
    genome = genome_of()
    lowest, _ = genome.reach("params", 16)
    program = IntegerProgram(genome, prices_of(genome, 0), "params", 16)
    assert program.solve(0, lowest - 1) is None


def test_every_layer_is_kept_where_the_space_keeps_them():
    genome = genome_of(heads=1, neurons=8, layers=None)
    prices = prices_of(genome, 0)
    genes, _ = IntegerProgram(genome, prices, "params", 16).solve(*genome.reach("params", 16))
    assert len(genome.decode(genes).layers) == genome.teacher.num_hidden_layers


def test_other_spaces_are_refused():
    space = SearchSpace("coarse", "", "natural", {"hidden": Axis("model", "count", "natural", 8, 8)})
    genome = Genome(space, tiny_family("llama").architecture(tiny_config("llama")))
    with pytest.raises(UserError, match=r"space 'coarse' differs in hidden.*use --space fine"):
        IntegerProgram(genome, CutPrices(*map(np.zeros, ((3, 3), (3, 4), 3))), "params", 16)


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_is_priced_by_what_it_does_to_the_teacher(name):
    model, family = tiny_model(name), tiny_family(name)
    teacher = family.architecture(model.config)
    full, ids = full_subnet(teacher), tiny_ids(batch=2)
    shape, width = teacher.layers[0], teacher.structure.head_dim
    every = tuple(range(shape.num_key_value_heads))
    group = shape.num_attention_heads // shape.num_key_value_heads
    queries, neurons = shape.num_attention_heads * width, shape.intermediate_size
    cuts = {
        "a head": (
            layer_units(teacher, 1, (1,), None, tuple(range(neurons))),
            {0: unit_mask([1], group * width, queries)},
        ),
        "no attention": (layer_units(teacher, 1, (), None, tuple(range(neurons))), {0: None}),
        "neurons": (layer_units(teacher, 1, every, None, (0, 3, 5)), {1: unit_mask([0, 3, 5], 1, neurons)}),
        "no mlp": (layer_units(teacher, 1, every, None, ()), {1: None}),
        "no layer": (None, {0: None, 1: None}),
    }
    cut = CutTeacher(model.state_dict(), model.config, family, ids)
    whole = model(ids).logits.double().log_softmax(-1)[:, POSITION_STEP - 1 :: POSITION_STEP]
    for which, (units, masks) in cuts.items():
        kept = [full.layers[0], units, full.layers[2]] if units else [full.layers[0], full.layers[2]]
        logits = masked_logits(model, type(full)(full.hidden, tuple(kept)), ids).double()
        other = logits.log_softmax(-1)[:, POSITION_STEP - 1 :: POSITION_STEP]
        expected = float((whole.exp() * (whole - other)).sum(-1).mean())
        assert cut.divergence(1, masks) == pytest.approx(expected, rel=1e-3, abs=1e-5), which
    assert cut.divergence(1, {}) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3, 24])
def test_prices_between_measured_ones_fall_to_nothing(blocks):
    levels = levels_of(blocks)
    assert levels[0] == 0 and levels[-1] < blocks
    values = [1.0 / (1 + level) for level in levels]
    prices = interpolate(levels, values, blocks)
    assert np.all(np.diff(prices) <= 0) and prices[-1] == 0
    assert prices[levels] == pytest.approx(values)


def test_flops_of_prices_count_every_pass():
    genome = genome_of()
    teacher, length = genome.teacher, 16
    head = 2 * teacher.structure.vocab_size * teacher.hidden_size
    body, layers = flops_per_token(teacher, length) - head, teacher.num_hidden_layers
    per_layer = 2 + 3 + 1  # heads: none or one of two; neurons: 0, 1 or 2 of three blocks; the layer
    cuts = [(layers - layer) / layers for layer in range(layers) for _ in range(per_layer)]
    expected = 1024 * (body * (1 + sum(cuts)) + len(cuts) * 2 * head / POSITION_STEP)
    assert price_flops(genome.space, teacher, length) == pytest.approx(expected)


@pytest.mark.slow
def test_an_integer_program_begins_a_search_that_can_be_resumed(command, tiny, tmp_path):
    more = ("--algorithm", "milp+nsga2", "--trials", "12", "--reconstruct", "none")
    assert command(tiny.arguments(tmp_path / "run", *more)) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "prices" in result["spent"]["seconds"]
    low, high = result["budget"]["low"], result["budget"]["high"]
    assert all(low <= record["cost"]["params"] <= high for record in trials_of(tmp_path / "run"))
    (tmp_path / "run" / "result.json").rename(tmp_path / "whole.json")
    lines = (tmp_path / "run" / "trials.jsonl").read_text().splitlines(keepends=True)
    whole = tmp_path / "whole"
    assert command(tiny.arguments(whole, *more)) == 0
    (tmp_path / "run" / "trials.jsonl").write_text("".join(lines[:5]))
    assert command(["--resume", tmp_path / "run"]) == 0
    assert outcome_of(tmp_path / "run") == outcome_of(whole)


@pytest.mark.slow
def test_the_integer_program_alone(command, tiny, tmp_path):
    assert (
        command(tiny.arguments(tmp_path / "run", "--algorithm", "milp", "--trials", "6", "--reconstruct", "none")) == 0
    )
    records = trials_of(tmp_path / "run")
    assert records and {record["origin"] for record in records} == {"milp"}
    assert torch.isfinite(torch.tensor([record["objectives"]["perplexity"] for record in records])).all()
