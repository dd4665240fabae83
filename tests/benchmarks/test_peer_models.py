"""The peers' models: exact where nothing is cut, of the size they say, and cut by the definitions of their papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import pruned, slicegpt
from benchmarks.peers.activations import Activations, gather_activations
from benchmarks.peers.whittle import first_units, lit_weights
from slm_ray.config.errors import UserError
from slm_ray.models.extraction import extract
from slm_ray.models.families import FAMILIES
from slm_ray.models.loading import load_student
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.starts import save_start
from slm_ray.records.cost import num_params
from tests.models.tiny import LENGTH, tiny_ids, tiny_model

PLAIN = {"attention_bias": False, "mlp_bias": False}
LLAMA = FAMILIES["llama"]


def _teacher(name: str = "llama", **changes: object) -> object:
    return tiny_model(name, **PLAIN, **changes)


def _sliced(teacher: object, width: int, *, tied: bool) -> object:
    return slicegpt.slice_model(teacher.config, teacher.state_dict(), tiny_ids(8), width, tied=tied)


@pytest.mark.parametrize(("name", "tied"), [("llama", True), ("llama", False), ("llama_untied", False)])
def test_a_rotated_model_of_full_width_is_the_teacher(name: str, tied: bool) -> None:
    teacher, ids = _teacher(name), tiny_ids(3, seed=1)
    model = _sliced(teacher, 32, tied=tied)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, teacher(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_sliced_model_has_the_size_and_flops_it_says_and_loads_again(tied: bool, tmp_path: Path) -> None:
    teacher = _teacher()
    model = _sliced(teacher, 16, tied=tied)
    assert sum(p.numel() for p in model.parameters()) == slicegpt.sliced_params(teacher.config, 16, tied=tied)
    model.set_attn_implementation("eager")  # torch counts no other kernel of a processor
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tiny_ids(1), use_cache=False)
    per_token = slicegpt.sliced_flops_per_token(teacher.config, 16, LENGTH, tied=tied)
    assert counter.get_total_flops() == LENGTH * per_token
    save_start(model, None, tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path / "model", "it")(tiny_ids()).logits, model(tiny_ids()).logits)


def test_a_width_is_the_largest_that_fits() -> None:
    config = _teacher().config
    limit = slicegpt.sliced_params(config, 24, tied=True)
    assert slicegpt.width_within(config, limit, tied=True) == 24
    assert slicegpt.width_within(config, limit - 1, tied=True) == 16
    with pytest.raises(UserError, match="larger --share"):
        slicegpt.width_within(config, 10, tied=True)


def test_directions_are_those_of_most_variance() -> None:
    signals = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 9, 2, 5, 1, 3.0])
    _, _, rows = torch.linalg.svd(signals.double(), full_matrices=False)
    found = slicegpt.principal_directions(signals, 3)
    torch.testing.assert_close((rows[:3] @ found).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_teacher_with_biases_is_refused() -> None:
    teacher = tiny_model("llama")
    with pytest.raises(UserError, match="without biases"):
        slicegpt.slice_model(teacher.config, teacher.state_dict(), tiny_ids(), 8, tied=True)


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


def test_a_shape_of_whittles_means_the_first_units_of_everything() -> None:
    teacher = _runner()[1].teacher
    spec = first_units(teacher, {"embed_dim": 24, "num_heads": 2, "mlp_ratio": 0.5, "depth": 2})
    assert spec.hidden == tuple(range(24)) and [layer.source for layer in spec.layers] == [0, 1]
    assert spec.layers[0].query_heads == ((0,), (2,)) and spec.layers[1].neurons == tuple(range(12))
    spec.architecture_in(teacher)


def test_whittle_gets_every_weight_once() -> None:
    teacher = _teacher()
    found = lit_weights(teacher.state_dict(), 3)
    embeddings = teacher.model.embed_tokens.weight.numel()
    assert sum(tensor.numel() for tensor in found.values()) == sum(p.numel() for p in teacher.parameters()) + embeddings
    attention = teacher.model.layers[2].self_attn
    torch.testing.assert_close(found["transformer.h.2.attn.qkv.weight"][-8:], attention.v_proj.weight[-8:])
