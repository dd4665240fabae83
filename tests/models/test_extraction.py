import copy

import pytest
import torch

from slm_ray.models.extraction import extract
from slm_ray.records.cost import num_params
from slm_ray.records.subnet import LayerUnits, SubnetSpec, full_subnet
from tests.models.tiny import NAMES, axes_of, axis_specs, random_spec, tiny_config, tiny_family, tiny_ids, tiny_model
from tests.references import masked_logits

CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # logits are of the order of 1 to 10


def cut(model, spec: SubnetSpec, **options):
    """Extract from a Hugging Face model."""
    name = model.config.model_type
    return extract(model.state_dict(), model.config, tiny_family(name), spec, **options)


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def teacher_of(name: str):
    model = tiny_model(name)
    return model, tiny_family(name).architecture(model.config)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_extract_is_the_teacher(name):
    model, teacher = teacher_of(name)
    student = cut(model, full_subnet(teacher))
    assert torch.equal(logits_of(student, tiny_ids()), logits_of(model, tiny_ids()))


@pytest.mark.parametrize(("name", "axis"), [(name, axis) for name in NAMES for axis in axes_of(name)])
def test_logits_are_the_teachers_with_the_dropped_units_masked(name, axis):
    model, teacher = teacher_of(name)
    spec = axis_specs(teacher)[axis]
    expected = masked_logits(model, spec, tiny_ids())
    assert not torch.allclose(expected, logits_of(model, tiny_ids()), atol=1e-2)
    torch.testing.assert_close(logits_of(cut(model, spec), tiny_ids()), expected, **CLOSE)


@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("name", NAMES)
def test_random_sub_networks_are_exact(name, seed):
    model, teacher = teacher_of(name)
    spec = random_spec(teacher, seed, drop_hidden=seed % 2 == 0)
    student = cut(model, spec)
    torch.testing.assert_close(logits_of(student, tiny_ids()), masked_logits(model, spec, tiny_ids()), **CLOSE)
    assert sum(parameter.numel() for parameter in student.parameters()) == num_params(spec.architecture_in(teacher))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_rotary_frequencies_are_the_teachers(name):
    changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}
    if name == "llama":
        del changes["rope_parameters"]["partial_rotary_factor"]
    model = tiny_model(name, **changes)
    teacher = tiny_family(name).architecture(model.config)
    for axis in ("heads", "uneven heads", "everything"):
        spec = axis_specs(teacher)[axis]
        student = cut(model, spec)
        assert torch.equal(student.base_model.rotary_emb.inv_freq, model.base_model.rotary_emb.inv_freq)
        torch.testing.assert_close(logits_of(student, tiny_ids()), masked_logits(model, spec, tiny_ids()), **CLOSE)


def test_scaled_rotary_positions_are_kept():
    rope = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    model = tiny_model("llama", rope_parameters=rope)
    teacher = tiny_family("llama").architecture(model.config)
    for axis in ("neurons", "everything"):
        spec = axis_specs(teacher)[axis]
        expected = masked_logits(model, spec, tiny_ids(length=40))
        torch.testing.assert_close(logits_of(cut(model, spec), tiny_ids(length=40)), expected, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_plain_class_can_express_is_that_class(name):
    model, teacher = teacher_of(name)
    specs = axis_specs(teacher)
    plain = {"layers", "neurons"}
    if tiny_family(name).free_head_dim:
        plain |= {"heads", "hidden", "query heads"}
    if name == "gpt2_scaled":
        plain = set()  # its attention is scaled by the layer's number in the teacher
    for axis, spec in specs.items():
        assert (type(cut(model, spec)) is type(model)) == (axis in plain), axis


def test_width_and_heads_cut_alike_are_plain_where_heads_fill_the_width():
    model, teacher = teacher_of("gpt_neox")
    full = full_subnet(teacher)
    halves = tuple(LayerUnits(layer.source, (1, 3), ((1,), (3,)), layer.neurons) for layer in full.layers)
    spec = SubnetSpec(full.hidden[::2], halves)
    student = cut(model, spec)
    assert type(student) is type(model)
    torch.testing.assert_close(logits_of(student, tiny_ids()), masked_logits(model, spec, tiny_ids()), **CLOSE)


@pytest.mark.parametrize("axis", ["layers", "everything"])
@pytest.mark.parametrize("name", NAMES)
def test_a_student_shares_no_memory_with_its_teacher(name, axis):
    model, teacher = teacher_of(name)
    for spec in (full_subnet(teacher), axis_specs(teacher)[axis]):
        student = cut(model, spec)
        before, state = logits_of(student, tiny_ids()), copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(logits_of(student, tiny_ids()), before)
        model.load_state_dict(state)
        owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        assert not owned & {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}


@pytest.mark.parametrize("axis", ["neurons", "everything"])
@pytest.mark.parametrize("name", NAMES)
def test_tied_stays_tied_and_untied_stays_untied(name, axis):
    model, teacher = teacher_of(name)
    student = cut(model, axis_specs(teacher)[axis])
    tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert tied == tiny_config(name).tie_word_embeddings


def test_the_type_of_the_weights_can_be_chosen():
    model, teacher = teacher_of("llama")
    for axis in ("layers", "everything"):
        student = cut(model, axis_specs(teacher)[axis], dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
        assert student.config.dtype == torch.bfloat16


def test_units_the_teacher_does_not_have_are_refused():
    model, teacher = teacher_of("llama")
    spec = full_subnet(teacher)
    with pytest.raises(ValueError, match=r"hidden channels: indices must ascend within 0\.\.31"):
        cut(model, SubnetSpec((*spec.hidden[:-1], 32), spec.layers))
