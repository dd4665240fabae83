"""What a user does with a student: generate, train, look inside, save and load."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from slm_ray.models.extraction import extract, save_student
from tests.models.tiny import NAMES, axis_specs, tiny_family, tiny_ids, tiny_model

PROMPT = tiny_ids(batch=2, length=5)


def student_of(name: str, axis: str, dtype: torch.dtype = torch.float32):
    model, family = tiny_model(name, dtype=dtype), tiny_family(name)
    return extract(model.state_dict(), model.config, family, axis_specs(family.architecture(model.config))[axis])


def generate(student, prompt: torch.Tensor, **options) -> torch.Tensor:
    options.setdefault("attention_mask", torch.ones_like(prompt))
    return student.generate(prompt, max_new_tokens=10, min_new_tokens=10, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("axis", ["first attention", "everything", "uneven heads", "hidden"])
@pytest.mark.parametrize("name", NAMES)
def test_generation_with_a_cache_is_generation_without(name, axis):
    student = student_of(name, axis)
    without = generate(student, PROMPT, use_cache=False)
    assert torch.equal(generate(student, PROMPT, use_cache=True), without)
    assert len(without[0]) == 15


@pytest.mark.parametrize("name", NAMES)
def test_cached_logits_are_those_of_the_whole_sequence(name):
    student, ids = student_of(name, "first attention"), tiny_ids()
    with torch.no_grad():
        whole = student(ids).logits
        past = student(ids[:, :7], use_cache=True).past_key_values
        assert past.get_seq_length() == 7
        rest = student(ids[:, 7:], past_key_values=past, use_cache=True).logits
    torch.testing.assert_close(rest, whole[:, 7:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_beams_padding_and_static_caches_work(name):
    student = student_of(name, "first attention")
    beams = {"num_beams": 3, "length_penalty": 0.0}
    assert torch.equal(generate(student, PROMPT, **beams), generate(student, PROMPT, use_cache=False, **beams))
    assert torch.equal(generate(student, PROMPT, cache_implementation="static"), generate(student, PROMPT))
    padded = torch.cat([torch.zeros_like(PROMPT[:, :3]), PROMPT], dim=1)
    mask = torch.cat([torch.zeros_like(PROMPT[:, :3]), torch.ones_like(PROMPT)], dim=1)
    assert torch.equal(generate(student, padded, attention_mask=mask)[:, 3:], generate(student, PROMPT))


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_attentions_can_be_seen(name):
    student = student_of(name, "first attention")
    student.set_attn_implementation("eager")
    with torch.no_grad():
        output = student(tiny_ids(), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 12, 32)] * 4
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 12, 12)] * 2  # layer 0 has none
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, 12))
    torch.testing.assert_close(student.get_output_embeddings()(output.hidden_states[-1]), output.logits)


@pytest.mark.parametrize("axis", ["first attention", "everything"])
@pytest.mark.parametrize("name", NAMES)
def test_a_student_trains_and_checkpointing_changes_no_gradient(name, axis):
    gradients = []
    for checkpointing in (False, True):
        student = student_of(name, axis)
        if checkpointing:
            student.gradient_checkpointing_enable()
        student.train()
        student(tiny_ids(), labels=tiny_ids(), use_cache=False).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in student.named_parameters()})
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axis", ["layers", "everything", "first attention"])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_student_comes_back_bit_for_bit(name, axis, dtype, tmp_path):
    student = student_of(name, axis, dtype)
    save_student(student, tmp_path / "winner")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "winner")
    assert type(again) is type(student)
    assert again.config.dtype == dtype
    state, expected = again.state_dict(), student.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) and state[key].dtype == dtype for key in state)
    with torch.no_grad():
        assert torch.equal(again(tiny_ids()).logits, student(tiny_ids()).logits)
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == (student.get_output_embeddings().weight is student.get_input_embeddings().weight)


def test_a_student_saved_again_by_someone_else_is_whole(tmp_path):
    save_student(student_of("llama", "everything"), tmp_path / "winner")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "winner")
    again.save_pretrained(tmp_path / "finetuned")  # as transformers' Trainer does
    names = {path.name for path in (tmp_path / "winner").iterdir()}
    assert {path.name for path in (tmp_path / "finetuned").iterdir()} == names
    assert "modeling_slm_ray.py" in names
