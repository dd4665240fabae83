"""A student in its teacher's shape is the student, and what is cut from it is what would be cut from the student."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from slm_ray.models.extraction import extract
from slm_ray.models.padding import pad_state
from slm_ray.records.subnet import SubnetSpec, full_subnet
from tests.models.tiny import NAMES, axis_specs, random_spec, tiny_config, tiny_family, tiny_ids, tiny_model

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def cut(state, config, family, spec):
    return extract(state, config, family, spec)


@torch.no_grad()
def trained(student, seed=0):
    """The student with every weight moved."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return student


def padded_of(name, spec):
    teacher, family = tiny_model(name), tiny_family(name)
    state = dict(teacher.state_dict())
    student = trained(cut(state, teacher.config, family, spec))
    padded = pad_state(student.state_dict(), state, family, teacher.config, spec)
    return student, padded, teacher.config, family


@pytest.mark.parametrize("seed", [1, 3, 5])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_padded_model_computes_what_the_student_does(name, seed):
    spec = random_spec(tiny_family(name).architecture(tiny_config(name)), seed, drop_hidden=False)
    student, padded, config, family = padded_of(name, spec)
    whole = AutoModelForCausalLM.from_config(config).eval()
    whole.load_state_dict(padded)
    expected = student(tiny_ids()).logits
    torch.testing.assert_close(whole(tiny_ids()).logits, expected, **CLOSE)
    # What was cut out of it comes out of it again, to the last bit.
    again = cut(padded, config, family, spec)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in student.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2_scaled"])
def test_all_that_the_student_has_not_is_zero(name):
    family, config = tiny_family(name), tiny_config(name)
    spec = axis_specs(family.architecture(config))["layers"]
    _, padded, _, _ = padded_of(name, spec)
    gone = [key for key in padded if key.startswith(family.layer_prefix.format(1))]
    assert gone and all(not padded[key].any() for key in gone)
    assert padded.keys() == tiny_model(name).state_dict().keys()


def test_a_whole_student_is_padded_to_itself():
    spec = full_subnet(tiny_family("llama").architecture(tiny_config("llama")))
    student, padded, _, _ = padded_of("llama", spec)
    assert all(torch.equal(padded[key], value) for key, value in student.state_dict().items())


def test_what_cannot_be_padded_is_refused():
    family, config = tiny_family("llama"), tiny_config("llama")
    teacher, state = family.architecture(config), dict(tiny_model("llama").state_dict())
    narrow = axis_specs(teacher)["hidden"]
    student = cut(state, config, family, narrow)
    with pytest.raises(ValueError, match="16 of 32 residual channels"):
        pad_state(student.state_dict(), state, family, config, narrow)
    full = full_subnet(teacher)
    short = cut(state, config, family, SubnetSpec(full.hidden, full.layers[:2]))
    with pytest.raises(ValueError, match=r"lacks \d+ tensors"):
        pad_state(short.state_dict(), state, family, config, full)
