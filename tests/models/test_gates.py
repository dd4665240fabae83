"""Gate gradients against automatic differentiation of a teacher with explicit gates, and against finite differences."""

import numpy as np
import pytest
import torch

from slm_ray.models import gates
from slm_ray.models.gates import GatedTeacher, GateGradients, Masks
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.subnet import full_subnet
from tests.models.tiny import axis_specs, random_spec, tiny_family, tiny_ids, tiny_model
from tests.references import gated_loss

PARTS = ("query_heads", "neurons", "hidden")


def gated(name: str, dtype=torch.float32):
    model = tiny_model(name, dtype=dtype)
    return GatedTeacher(model.state_dict(), model.config, tiny_family(name)), model


def masks_of(name: str, model, seed: int = 3) -> Masks:
    architecture = tiny_family(name).architecture(model.config)
    return Masks.of(random_spec(architecture, seed=seed, drop_hidden=False), architecture)


def gates_of(model, name: str, batch: int, masks: Masks | None = None, positions: int = 1) -> list[torch.Tensor]:
    """Explicit gates per sequence (and position): ones, or zeros where a mask drops the unit."""
    architecture = tiny_family(name).architecture(model.config)
    full = masks or Masks.of(full_subnet(architecture), architecture)
    size = (batch, positions, 1, 1)
    heads, neurons = (torch.from_numpy(part).double().repeat(size) for part in (full.query_heads, full.neurons))
    channels = torch.ones(batch, positions, architecture.hidden_size, dtype=torch.float64)
    return [gate.requires_grad_(True) for gate in (heads, neurons, channels)]


def expected_gradients(model, name: str, ids: torch.Tensor, masks: Masks | None = None, positions: int = 1):
    double = tiny_model(name).double()
    gates = gates_of(double, name, len(ids), masks, positions)
    losses = gated_loss(double, ids, *gates)
    return losses.detach(), [gradient.numpy() for gradient in torch.autograd.grad(losses.sum(), gates)]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "gpt2", "gemma3"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_present_and_absent_units(name, masked):
    teacher, model = gated(name)
    ids = tiny_ids(batch=3)
    masks = masks_of(name, model) if masked else None
    assert masks is None or not (masks.query_heads.all() or masks.neurons.all())
    losses, expected = expected_gradients(model, name, ids, masks)
    found = teacher.gradients(ids, masks)
    for part, wanted in zip(PARTS, expected, strict=True):
        wanted = wanted[:, 0]  # a short sequence is one segment
        np.testing.assert_allclose(getattr(found, part), wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())
    assert found.loss == pytest.approx(float(losses.sum()), rel=1e-4)
    assert found.tokens == 3 * (ids.shape[1] - 1)
    if masked:
        absent = found.neurons[:, ~masks.neurons]
        assert np.abs(absent).max() > 1e-4  # a dropped unit still shows that it is missed


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_segment_has_gradients_of_its_own(name, monkeypatch):
    monkeypatch.setattr(gates, "SEGMENT_TOKENS", 5)
    teacher, model = gated(name)
    ids, masks = tiny_ids(batch=2, length=12), masks_of(name, model)
    _, expected = expected_gradients(model, name, ids, masks, positions=12)
    found = teacher.gradients(ids, masks)
    for part, by_position in zip(PARTS, expected, strict=True):
        wanted = np.stack([by_position[:, first : first + 5].sum(1) for first in (0, 5, 10)], 1)
        wanted = wanted.reshape(6, *wanted.shape[2:])
        np.testing.assert_allclose(getattr(found, part), wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["llama", "gpt_neox_sequential", "gpt2"])
def test_a_sequence_does_not_depend_on_its_batch(name):
    teacher, model = gated(name)
    ids, masks = tiny_ids(batch=5), masks_of(name, model)
    together = teacher.gradients(ids, masks)
    apart = GateGradients.join([teacher.gradients(ids[number : number + 1], masks) for number in range(5)])
    for part in PARTS:
        np.testing.assert_allclose(getattr(together, part), getattr(apart, part), rtol=1e-3, atol=1e-4)
    assert together.loss == pytest.approx(apart.loss, rel=1e-5) and together.tokens == apart.tokens


def test_one_call_leaves_nothing_behind_for_the_next():
    teacher, model = gated("llama")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    ids = tiny_ids()
    first = teacher.gradients(ids)
    teacher.gradients(tiny_ids(batch=4, seed=9), masks_of("llama", model))
    again = teacher.gradients(ids)
    assert all(np.array_equal(getattr(first, part), getattr(again, part)) for part in PARTS)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama_untied", "qwen3", "gpt2_scaled", "gemma3", "granite"])
def test_the_loss_under_masks_is_that_of_the_sub_network(name):
    teacher, model = gated(name)
    family = tiny_family(name)
    architecture = family.architecture(model.config)
    runner, ids = SubnetRunner(model.state_dict(), model.config, family), tiny_ids()
    for label, spec in axis_specs(architecture).items():
        biased = model.config.model_type in ("gpt2", "granite")
        if len(spec.hidden) < architecture.hidden_size or (biased and label in ("first attention", "an mlp", "layers")):
            continue  # channels are not masked; a skipped sub-layer takes its output bias with it, a mask does not
        losses = runner.token_losses(spec, ids)
        found = teacher.gradients(ids, Masks.of(spec, architecture))
        assert found.loss == pytest.approx(float(losses.sum()), rel=1e-4), label


def test_bfloat16_is_near():
    exact, _ = gated("llama")
    rough, _ = gated("llama", torch.bfloat16)
    ids = tiny_ids(batch=4, length=40)
    for part in PARTS:
        a, b = (getattr(teacher.gradients(ids), part).ravel() for teacher in (exact, rough))
        assert np.corrcoef(a, b)[0, 1] > 0.98
