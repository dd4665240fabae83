import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from slm_ray.models.extraction import extract
from slm_ray.models.families import HEAD
from slm_ray.models.gates import GatedTeacher
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.subnet import full_subnet
from tests.models.tiny import NAMES, axis_specs, random_spec, tiny_family, tiny_ids, tiny_model


def runner_of(name: str, dtype: torch.dtype = torch.float32):
    model, family = tiny_model(name, dtype=dtype), tiny_family(name)
    return SubnetRunner(model.state_dict(), model.config, family), model, family


@torch.no_grad()
def own_losses(student, ids: torch.Tensor) -> torch.Tensor:
    logits = student(ids).logits[:, :-1].float()
    return functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_the_extracted_model(name):
    runner, model, family = runner_of(name)
    ids = tiny_ids(batch=3, length=40)  # more positions than one chunk of logits
    specs = [full_subnet(runner.teacher), *axis_specs(runner.teacher).values()]
    specs += [random_spec(runner.teacher, seed, drop_hidden=seed % 2 == 0) for seed in range(4)]
    for spec in specs:
        expected = own_losses(extract(model.state_dict(), model.config, family, spec), ids)
        torch.testing.assert_close(runner.token_losses(spec, ids), expected, rtol=1e-4, atol=1e-4)


def test_scales_of_embeddings_and_logits_are_the_familys():
    """A family that scales is a plain one whose embedding, or output head, has the scale in its weights."""
    model, ids = tiny_model("llama_untied"), tiny_ids()
    family, state = tiny_family("llama_untied"), model.state_dict()
    scaling = replace(family, embedding_scale=lambda config: 3.0, logit_scale=lambda config: 0.25)
    scaled = {**state, family.embedding: 3 * state[family.embedding], HEAD: 0.25 * state[HEAD]}
    for spec in axis_specs(family.architecture(model.config)).values():
        found = SubnetRunner(state, model.config, scaling).token_losses(spec, ids)
        torch.testing.assert_close(found, SubnetRunner(scaled, model.config, family).token_losses(spec, ids))
    found, expected = (
        GatedTeacher(*given).gradients(ids)
        for given in ((state, model.config, scaling), (scaled, model.config, family))
    )
    assert found.loss == pytest.approx(expected.loss)
    for part in ("query_heads", "neurons", "hidden"):
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_one_candidate_leaves_nothing_behind_for_the_next(name):
    runner, model, _ = runner_of(name)
    weights = copy.deepcopy(model.state_dict())
    specs = list(axis_specs(runner.teacher).values())
    first = [runner.token_losses(spec, tiny_ids()) for spec in specs]
    second = [runner.token_losses(spec, tiny_ids()) for spec in reversed(specs)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(second), strict=True))
    assert all(torch.equal(weights[key], tensor) for key, tensor in runner.state.items())
