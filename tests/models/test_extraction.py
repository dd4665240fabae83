"""Students are exact: their logits are the teacher's with the dropped units masked; sizes and classes are as said."""

import copy

import pytest
import torch

from slm_ray.models.extraction import extract, save_student
from slm_ray.models.families import base_family
from slm_ray.records.cost import num_params
from slm_ray.records.subnet import LayerUnits, SubnetSpec, full_subnet
from tests.models.tiny import ALL, axis_specs, random_spec, tiny_config, tiny_family, tiny_ids, tiny_model
from tests.references import masked_logits

CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # logits are of the order of 1 to 10


def cut(model, spec: SubnetSpec, **options):
    """Extract from a Hugging Face model."""
    return extract(model.state_dict(), model.config, base_family(model.config), spec, **options)


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def teacher_of(name: str, **changes):
    model = tiny_model(name, **changes)
    return model, tiny_family(name).architecture(model.config)


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2_scaled", "gemma3", "phi3"])
def test_random_sub_networks_are_exact_also_of_sub_networks(name):
    model, teacher = teacher_of(name)
    for seed in range(1, 7):
        spec = random_spec(teacher, seed, drop_hidden=seed % 2 == 0)
        student = cut(model, spec)
        torch.testing.assert_close(logits_of(student, tiny_ids()), masked_logits(model, spec, tiny_ids()), **CLOSE)
        assert count(student) == num_params(spec.architecture_in(teacher))
    layers = SubnetSpec(full_subnet(teacher).hidden[:30], full_subnet(teacher).layers[1:])
    student, family = cut(model, layers), tiny_family(name)
    part = SubnetSpec(tuple(range(30)), full_subnet(family.architecture(student.config)).layers[1:])
    again = extract(student.state_dict(), student.config, family, part)  # scaled by the first teacher's layers
    direct = cut(model, SubnetSpec(layers.hidden, layers.layers[1:]))
    assert torch.equal(logits_of(again, tiny_ids()), logits_of(direct, tiny_ids()))


ROPE = {"rope_type": "default", "rope_theta": 500.0}
LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0], "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16, "factor": 4.0}


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama", {}),
        ("gpt_neox", {"partial_rotary_factor": 0.5}),
        ("llama", {**LLAMA3, "rope_type": "llama3"}),
        ("mistral", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
        ("phi3", LONG),
    ],
)
def test_rotary_frequencies_are_the_teachers(name, rope, tmp_path):
    model, teacher = teacher_of(name, rope_parameters={**ROPE, **rope})
    for axis in ("heads", "uneven heads", "neurons", "everything"):
        spec, ids = axis_specs(teacher)[axis], tiny_ids(length=40)
        student = cut(model, spec)
        rotary = student.base_model.rotary_emb
        assert torch.equal(rotary.original_inv_freq, model.base_model.rotary_emb.original_inv_freq)
        torch.testing.assert_close(logits_of(student, ids), masked_logits(model, spec, ids), **CLOSE)
    save_student(student, tmp_path)
    assert torch.equal(logits_of(type(student).from_pretrained(tmp_path), ids), logits_of(student, ids))


@pytest.mark.parametrize("name", ALL)
def test_a_student_is_of_the_plain_class_where_that_can_express_it(name):
    model, teacher = teacher_of(name)
    family, full = tiny_family(name), full_subnet(teacher)
    group = full.layers[0].query_heads[:1]
    specs = {
        **axis_specs(teacher),
        "one head": SubnetSpec(
            full.hidden,
            tuple(LayerUnits(u.source, (0,), (u.query_heads[0][:1],), u.neurons) for u in full.layers),
        ),
        "width": SubnetSpec(full.hidden[:30], full.layers),
        "width and heads": SubnetSpec(
            full.hidden[: len(group[0]) * teacher.structure.head_dim],
            tuple(LayerUnits(u.source, (0,), u.query_heads[:1], u.neurons) for u in full.layers),
        ),
    }
    for axis, spec in specs.items():
        student, reason = cut(model, spec), family.plain_class_refuses(spec.architecture_in(teacher))
        is_plain = type(student) is type(model)
        assert is_plain == (reason is None and name != "gpt2_scaled"), axis
        if not is_plain:
            assert student.config.per_layer_reason == reason or "teacher's layers" in student.config.per_layer_reason
        assert (reason == "its layers differ in size") == (not spec.architecture_in(teacher).is_uniform)
    assert family.plain_class_refuses(specs["width and heads"].architecture_in(teacher)) is None


@pytest.mark.parametrize("axis", ["layers", "everything"])
@pytest.mark.parametrize("name", ["llama", "llama_untied"])
def test_a_student_shares_no_memory_with_its_teacher_and_ties_as_it_does(name, axis):
    model, teacher = teacher_of(name)
    for spec in (full_subnet(teacher), axis_specs(teacher)[axis]):
        student = cut(model, spec)
        before, state = logits_of(student, tiny_ids()), copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(logits_of(student, tiny_ids()), before)
        model.load_state_dict(state)
        tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
        assert tied == tiny_config(name).tie_word_embeddings


@pytest.mark.parametrize("axis", ["layers", "everything"])
def test_the_type_of_the_weights_can_be_chosen_when_extracting_and_when_saving(axis, tmp_path):
    model, teacher = teacher_of("llama")
    student = cut(model, axis_specs(teacher)[axis], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in student.parameters()} == {student.config.dtype} == {torch.bfloat16}
    exact = cut(model, axis_specs(teacher)[axis])
    saved = {name: save_student(exact, tmp_path / name, dtype=name) for name in ("fp32", "bf16", "fp16")}
    assert {name: one.dtype for name, one in saved.items()} == {name: name for name in saved}
    assert 0.45 < saved["bf16"].bytes / saved["fp32"].bytes < 0.75
    assert all(parameter.dtype == torch.float32 for parameter in exact.parameters())  # it keeps its own
    again = type(exact).from_pretrained(tmp_path / "bf16")
    assert again.config.dtype == torch.bfloat16
    assert all(torch.equal(tensor, student.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_units_the_teacher_does_not_have_are_refused():
    model, teacher = teacher_of("llama")
    spec = full_subnet(teacher)
    with pytest.raises(ValueError, match=r"hidden channels: indices must ascend within 0\.\.31"):
        cut(model, SubnetSpec((*spec.hidden[:-1], 32), spec.layers))
