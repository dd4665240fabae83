"""Optimisers against the published updates, which parameters decay, and state kept by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from slm_ray.models.extraction import extract
from slm_ray.pretrain.components import OptimizerConfig
from slm_ray.pretrain.config import ELEMENTWISE
from slm_ray.pretrain.optimizers import build_optimizer, load_state_by_name, parameter_groups, state_by_name
from tests.models.tiny import NAMES, random_spec, tiny_family, tiny_ids, tiny_model
from tests.references import optimizer_updates

OPTIMIZERS = ("adamw", "lion", "lamb", "muon")
BETAS, EPS, RATE = (0.9, 0.95), 1e-8, 0.01
TABLES = ("wte", "wpe", "embed_tokens", "embed_in", "embed_out", "lm_head")


def make(kind, model, lr=1e-2, weight_decay=0.1, fused=False):
    config = OptimizerConfig(optimizer=kind, learning_rate=lr, weight_decay=weight_decay)
    return build_optimizer(config, model, fused=fused, eps=EPS)


def _decays(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and "wpe" not in name


def _gets_muon(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and not any(table in name for table in TABLES)


def _random_gradients(model, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()} for _ in range(steps)
    ]


def _update(model, optimizer, gradients, factor=1.0):
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()  # Muon writes into it
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    optimizer.step()


def _expected_kind(kind, name, parameter):
    return "adamw" if kind == "muon" and not _gets_muon(name, parameter) else kind


@pytest.mark.parametrize("family", ["gpt2", "llama_untied"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_three_updates_are_the_published_ones(kind, family):
    decay, model, factors = 0.1, tiny_model(family), [0.5, 1.0, 0.3]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(kind, model, RATE, decay)
    gradients = _random_gradients(model, 3)
    for one, factor in zip(gradients, factors, strict=True):
        _update(model, optimizer, one, factor)
    for name, parameter in model.named_parameters():
        rule = _expected_kind(kind, name, parameter)
        expected = optimizer_updates(
            rule, before[name], [one[name] for one in gradients], [RATE * factor for factor in factors], BETAS, EPS,
            decay if _decays(name, parameter) else 0.0, trust=_decays(name, parameter),
        )  # fmt: skip
        # Muon's matrices are made orthogonal in bf16, whose steps are 1/128 of an entry.
        largest = np.abs(expected - before[name].numpy()).max()
        tolerance = 0.03 * largest if rule == "muon" else 2e-6
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=tolerance, err_msg=name)


def _winner(family):
    """A student with layers of different sizes."""
    model = tiny_model(family)
    teacher = tiny_family(family).architecture(model.config)
    return extract(model.state_dict(), model.config, tiny_family(family), random_spec(teacher, seed=3))


@pytest.mark.parametrize("built", [tiny_model, _winner])
@pytest.mark.parametrize("family", NAMES)
def test_every_parameter_is_in_one_group_and_tied_ones_once(family, built):
    model = built(family)
    groups = {group["name"]: group for group in parameter_groups(model, 0.1)}
    named = dict(model.named_parameters())
    assert sorted(name for group in groups.values() for name in group["param_names"]) == sorted(named)
    for group in groups.values():
        assert all(named[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))
    assert groups["decay"]["param_names"] == [name for name, p in named.items() if _decays(name, p)]
    assert (groups["decay"]["weight_decay"], groups["no_decay"]["weight_decay"]) == (0.1, 0.0)


def test_muon_gets_the_layers_matrices_and_adamw_the_rest():
    model = tiny_model("gpt_neox")
    optimizer = make("muon", model)
    named = dict(model.named_parameters())
    for group in optimizer.param_groups:
        assert all(_gets_muon(name, named[name]) == group["use_muon"] for name in group["param_names"])
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == {
        "matrices": 0.1, "decay": 0.1, "no_decay": 0.0,
    }  # fmt: skip


def test_elementwise_ones_do_the_same_to_a_flat_piece():
    """What ZeRO needs: cut the tensors anywhere and nothing changes."""
    for kind in OPTIMIZERS:
        model, gradients = tiny_model("llama_untied"), _random_gradients(tiny_model("llama_untied"), 2)
        name, parameter = next((n, p) for n, p in model.named_parameters() if "up_proj" in n)
        start = parameter.detach().clone()
        optimizer = make(kind, model, RATE)
        for one in gradients:
            _update(model, optimizer, one)
        piece = optimizer_updates(
            kind, start[:7], [one[name][:7] for one in gradients], [RATE] * 2, BETAS, EPS, 0.1
        )  # fmt: skip
        same = np.allclose(parameter.detach().numpy()[:7], piece, atol=2e-6)
        assert same == (kind in ELEMENTWISE), kind


def _through_a_file(state, path):
    save_file({f"{name}::{key}": value for name, entry in state.items() for key, value in entry.items()}, path)
    loaded: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(path).items():
        loaded.setdefault(name.split("::")[0], {})[name.split("::")[1]] = value
    return loaded


def _train(model, optimizer, steps):
    for seed in steps:
        ids = tiny_ids(seed=seed)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_goes_on_bit_for_bit(kind, tmp_path):
    options = {"lr": 1e-2, "fused": True}
    whole, halves = tiny_model("llama"), tiny_model("llama")
    _train(whole, make(kind, whole, **options), range(5))

    first = make(kind, halves, **options)
    _train(halves, first, range(2))
    state = _through_a_file(state_by_name(first, halves), tmp_path / "state.safetensors")
    again = tiny_model("llama", seed=9)
    again.load_state_dict(halves.state_dict())
    second = make(kind, again, **options)
    second.param_groups.reverse()  # the order of groups means nothing
    load_state_by_name(second, again, state)
    _train(again, second, range(2, 5))

    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_grown_model_keeps_what_its_old_layers_gathered(kind):
    small, grown = tiny_model("llama", num_hidden_layers=2), tiny_model("llama", num_hidden_layers=3)
    optimizer = make(kind, small)
    _train(small, optimizer, range(2))
    state = state_by_name(optimizer, small)
    larger = make(kind, grown)
    load_state_by_name(larger, grown, state)
    found = state_by_name(larger, grown)
    assert set(found) == set(state) and not any("layers.2" in name for name in found)
    assert all(torch.equal(found[name][key], state[name][key]) for name in state for key in state[name])
    before = {name: p.detach().clone() for name, p in grown.named_parameters()}
    _train(grown, larger, range(1))
    assert all(not torch.equal(p, before[name]) for name, p in grown.named_parameters())
    assert set(state_by_name(larger, grown)) == set(before)
