"""A search over a mixture's experts."""

import pytest
from transformers import AutoModelForCausalLM

from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.runtime.commands import run_command
from slm_ray.search.axes import natural_scores_of
from slm_ray.search.command import main
from slm_ray.search.genome import Genome
from slm_ray.search.space import load_space
from tests.models.tiny import tiny_config, tiny_family
from tests.search.tiny_run import make_teacher, sentences
from tests.search.without_ray import run_without_ray


@pytest.mark.parametrize("space", ["fine", "coarse", "coarse_layerwise", "fine_uniform", "depth"])
def test_a_layer_keeps_as_many_experts_as_a_token_needs(space):
    teacher = tiny_family("olmoe").architecture(tiny_config("olmoe", hidden_size=64))
    scores = natural_scores_of(teacher)
    genome = Genome(load_space(space), teacher, {"taylor": scores, "activation": scores, "magnitude": scores})
    leanest = genome.decode(genome.lower).architecture_in(teacher)
    assert {layer.intermediate_size for layer in leanest.layers} == {8 if space == "depth" else 3}
    for quantity, count in (("params", num_params(leanest)), ("flops", flops_per_token(leanest, 8))):
        assert genome.cost(genome.lower, quantity, 8) == count


@pytest.mark.slow
def test_winners_of_a_mixture_load_and_are_fitted(tiny, tmp_path, monkeypatch, capsys):
    run_without_ray(monkeypatch)
    sizes = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 12}
    make_teacher(tmp_path / "mixture", sentences(900), kind="qwen3_moe", **sizes)
    more = ("--space", "fine", "--trials", "6", "--params", "0.7", "--winners", "1")
    assert run_command(main, tiny.arguments(tmp_path / "run", "--teacher", str(tmp_path / "mixture"), *more)) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "winners" / "0")
    kept = [layer["intermediate_size"] for layer in model.config.layer_sizes()]
    assert all(count == 0 or 2 <= count <= 6 for count in kept) and sum(kept) < 24
