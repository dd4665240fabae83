"""Exact costs against what torch and transformers count, for the plain models and for sub-networks cut out of them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slm_ray.models.extraction import extract
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.cost import flops_per_token, kv_bytes_per_token, num_params
from slm_ray.records.subnet import full_subnet
from tests.models.tiny import LENGTH, NAMES, axis_specs, random_spec, tiny_config, tiny_family, tiny_ids, tiny_model


@pytest.fixture(scope="module", params=NAMES)
def cases(request) -> list[tuple[object, Architecture]]:
    """A family's teacher and sub-networks of it, with their sizes."""
    model, family = tiny_model(request.param), tiny_family(request.param)
    teacher = family.architecture(model.config)
    specs = [*axis_specs(teacher).values(), *(random_spec(teacher, seed) for seed in (4, 5, 6))]
    students = [
        (extract(model.state_dict(), model.config, family, spec), spec.architecture_in(teacher)) for spec in specs
    ]
    return [(model, teacher), *students]


def test_parameters_are_those_of_the_model_with_tied_ones_once(cases):
    for model, architecture in cases:
        assert num_params(architecture) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("length", [1, LENGTH])
def test_flops_are_those_torch_counts(cases, length):
    for model, architecture in cases:
        model.set_attn_implementation("eager")  # torch does not count the fused kernel on a CPU
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(tiny_ids(batch=2, length=length), use_cache=False)
        assert flops_per_token(architecture, length) * 2 * length == counter.get_total_flops()


def test_cache_bytes_are_those_of_the_cache(cases):
    for model, architecture in cases:
        with torch.no_grad():
            cache = model(tiny_ids(batch=2), use_cache=True).past_key_values
        tensors = [tensor for layer in cache.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert kv_bytes_per_token(architecture, bytes_per_value=4) * 2 * LENGTH == held


def test_the_cost_of_known_models():
    # From the model cards: SmolLM2-135M has 134,515,008 parameters, GPT-2 124,439,808, Pythia-70m 70,426,624.
    def params(name: str, vocab: int, hidden: int, layers: int, heads: int, **more: object) -> int:
        sizes = {"vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
        return num_params(tiny_family(name).architecture(tiny_config(name, **sizes, **more)))

    plain = {"attention_bias": False, "mlp_bias": False}
    assert params("llama", 49152, 576, 30, 9, num_key_value_heads=3, intermediate_size=1536, **plain) == 134_515_008
    assert params("gpt2", 50257, 768, 12, 12, max_position_embeddings=1024) == 124_439_808
    assert params("gpt_neox", 50304, 512, 6, 8, intermediate_size=2048) == 70_426_624


def test_more_context_costs_attention_alone():
    teacher = tiny_family("llama").architecture(tiny_model("llama").config)
    # Two products of (heads x head_dim) with every position, a multiply and an add each, in three layers.
    assert flops_per_token(teacher, 20) - flops_per_token(teacher, 10) == 3 * 2 * 2 * 32 * 10


def test_what_is_skipped_costs_nothing():
    teacher = tiny_family("llama").architecture(tiny_model("llama").config)
    empty = Architecture(teacher.structure, teacher.hidden_size, (*teacher.layers, LayerShape(0, 0, 0)))
    assert num_params(empty) == num_params(teacher)
    assert flops_per_token(empty, 10) == flops_per_token(teacher, 10)
    assert kv_bytes_per_token(empty) == kv_bytes_per_token(teacher)


def test_a_full_sub_network_has_the_teachers_sizes():
    for name in NAMES:
        teacher = tiny_family(name).architecture(tiny_model(name).config)
        assert full_subnet(teacher).architecture_in(teacher) == teacher
