"""Computing on another device than the processor, proved without one.

torch's meta device refuses, as a GPU does, whatever mixes its tensors with the processor's; it holds no values, so that
these are made up where they are read.
"""

import pytest
import torch

from slm_ray.models.gates import GatedTeacher, Masks
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.subnet import full_subnet
from slm_ray.search.evaluator import TeacherKL
from slm_ray.search.race import StagedLoss
from tests.models.tiny import axis_specs, random_spec, tiny_family, tiny_ids, tiny_model

FAMILIES = ("llama", "gpt_neox", "gpt2_scaled")


@pytest.fixture(autouse=True)
def values_where_they_are_read(monkeypatch):
    """Zeros for what is copied to the processor."""
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape, dtype=self.dtype))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 0.0)
    # Looks at values to see whether sequences are packed, on any device.
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)


def on_meta(name: str):
    model = tiny_model(name)
    state = {key: tensor.to("meta") for key, tensor in model.state_dict().items()}
    return state, model.config, tiny_family(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_candidates_are_computed_where_the_weights_are(name):
    runner = SubnetRunner(*on_meta(name))
    specs = [full_subnet(runner.teacher), *axis_specs(runner.teacher).values(), random_spec(runner.teacher, 2)]
    kl = TeacherKL(runner, tiny_ids(batch=4).to("meta"))
    for spec in [*specs, *specs]:
        assert kl.losses(spec, tiny_ids(batch=4).to("meta"), 0).device.type == "meta"
    assert runner.token_losses(specs[0], tiny_ids()).device.type == "meta"  # ids may come from the processor


def test_losses_come_back_to_the_processor():
    runner = SubnetRunner(*on_meta("llama"))
    spec, ids = full_subnet(runner.teacher), tiny_ids(batch=5).to("meta")
    found = StagedLoss(ids, (2 * ids.shape[1],)).measure(lambda part, _first: runner.token_losses(spec, part))
    assert not found.is_beaten and len(found.blocks) == 5


@pytest.mark.parametrize("name", FAMILIES)
def test_gate_gradients_are_taken_where_the_weights_are_and_come_back(name):
    gated = GatedTeacher(*on_meta(name))
    masks = Masks.of(random_spec(gated.architecture, 1, drop_hidden=False), gated.architecture)
    for given in (None, masks):
        found = gated.gradients(tiny_ids(), given)
        assert found.neurons.shape == (2, *masks.neurons.shape)
