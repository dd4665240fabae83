"""The peers' models: exact where nothing is cut, of the size they say, and cut by the definitions of their papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import pruned
from benchmarks.peers.activations import Activations, gather_activations
from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract
from slm_ray.models.families import FAMILIES
from slm_ray.models.runner import SubnetRunner
from slm_ray.records.cost import num_params
from tests.models.tiny import LENGTH, tiny_ids, tiny_model

PLAIN = {"attention_bias": False, "mlp_bias": False}
LLAMA = FAMILIES["llama"]


def _teacher(name: str = "llama", **changes: object) -> object:
    return tiny_model(name, **PLAIN, **changes)


def _runner() -> tuple[object, SubnetRunner]:
    teacher = _teacher()
    return teacher, SubnetRunner(teacher.state_dict(), teacher.config, LLAMA)


def test_activations_are_means_over_tokens_and_roots_of_squares_over_samples() -> None:
    teacher, runner = _runner()
    ids = tiny_ids(3)
    found = gather_activations(runner, ids, batch=2)
    seen: dict[str, list[torch.Tensor]] = {"neurons": [], "heads": [], "norms": [], "streams": []}
    layer = teacher.model.layers[1]
    layer.mlp.down_proj.register_forward_pre_hook(lambda _m, x: seen["neurons"].append(x[0]))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, x: seen["heads"].append(x[0]))
    layer.register_forward_hook(lambda _m, x, y: seen["streams"].extend([x[0], y]))
    for name, module in teacher.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda _m, _x, y: seen["norms"].append(y))
    with torch.no_grad():
        teacher(ids)
    neurons = seen["neurons"][0].abs().mean(1).square().sum(0).sqrt()
    np.testing.assert_allclose(found.neurons[1], neurons, rtol=1e-4)
    heads = seen["heads"][0].unflatten(-1, (4, 8)).norm(dim=-1).mean(1).square().sum(0)
    np.testing.assert_allclose(found.kv_heads[1], heads.view(2, 2).sum(1).sqrt(), rtol=1e-4)
    hidden = sum(norm.abs().mean(1).square().sum(0) for norm in seen["norms"]).sqrt()
    assert len(seen["norms"]) == 7
    np.testing.assert_allclose(found.hidden, hidden, rtol=1e-4)
    before, after = seen["streams"]
    cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    assert found.influence[1] == pytest.approx(float((1 - cosine).mean()), rel=1e-4)


def test_activations_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = gather_activations(_runner()[1], tiny_ids())
    found.save(tmp_path / "found.safetensors")
    again = Activations.load(tmp_path / "found.safetensors")
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), value)


def test_uniform_cuts_keep_the_most_important_and_lie_just_within_the_budget() -> None:
    teacher, runner = _runner()
    found = gather_activations(runner, tiny_ids())
    limit = int(0.6 * num_params(runner.teacher))
    shapes = list(pruned.shapes_near(runner.teacher, limit))
    assert shapes
    for shape in shapes:
        spec = pruned.uniform_cut(runner.teacher, found, *shape)
        size = num_params(spec.architecture_in(runner.teacher))
        assert 0.95 * limit <= size <= limit
        assert set(spec.hidden) == set(np.argsort(-found.hidden)[: shape[0]])
        assert {layer.source for layer in spec.layers} == set(np.argsort(-found.influence)[: shape[1]])
    chosen, tokens = pruned.pick(runner, [pruned.uniform_cut(runner.teacher, found, *s) for s in shapes], tiny_ids(4))
    assert tokens == len(shapes) * LENGTH + 4 * LENGTH * max(2, len(shapes) // 8)
    student = extract(teacher.state_dict(), teacher.config, LLAMA, chosen).requires_grad_(False)
    logits = student(tiny_ids(4)).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, tiny_ids(4)[:, 1:].flatten())
    assert pruned.mean_loss(runner, chosen, tiny_ids(4)) == pytest.approx(float(loss), rel=1e-4)


def test_layers_of_least_influence_go_first() -> None:
    teacher = _runner()[1].teacher
    influence = np.array([0.2, 0.1, 0.3])
    two = pruned.fewer_layers(teacher, influence, num_params(teacher) - 1)
    assert [layer.source for layer in two.layers] == [0, 2]
    one = pruned.fewer_layers(teacher, influence, num_params(two.architecture_in(teacher)) - 1)
    assert [layer.source for layer in one.layers] == [2]
    with pytest.raises(UserError, match="larger --share"):
        pruned.fewer_layers(teacher, influence, 10)
