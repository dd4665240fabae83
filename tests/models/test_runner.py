import copy

import pytest
import torch
from torch.nn import functional

from slm_ray.models.runner import SubnetRunner
from tests.models.tiny import axis_specs, tiny_family, tiny_ids, tiny_model


def runner_of(name: str, dtype: torch.dtype = torch.float32):
    model, family = tiny_model(name, dtype=dtype), tiny_family(name)
    return SubnetRunner(model.state_dict(), model.config, family), model, family


@torch.no_grad()
def own_losses(student, ids: torch.Tensor) -> torch.Tensor:
    logits = student(ids).logits[:, :-1].float()
    return functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_one_candidate_leaves_nothing_behind_for_the_next(name):
    runner, model, _ = runner_of(name)
    weights = copy.deepcopy(model.state_dict())
    specs = list(axis_specs(runner.teacher).values())
    first = [runner.token_losses(spec, tiny_ids()) for spec in specs]
    second = [runner.token_losses(spec, tiny_ids()) for spec in reversed(specs)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(second), strict=True))
    assert all(torch.equal(weights[key], tensor) for key, tensor in runner.state.items())
