"""Exact costs against what torch and transformers count, for the plain models and for sub-networks cut out of them."""


from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.cost import flops_per_token, kv_bytes_per_token, num_params
from slm_ray.records.subnet import full_subnet
from tests.models.tiny import NAMES, tiny_config, tiny_family, tiny_model


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
