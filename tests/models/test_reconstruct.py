import copy
from dataclasses import replace

import pytest
import torch

from slm_ray.models.extraction import extract
from slm_ray.models.least_squares import Sums, rough_products
from slm_ray.models.reconstruction import ReconstructionSettings, reconstruct
from slm_ray.records.subnet import SubnetSpec, full_subnet
from tests.models.tiny import axis_specs, random_spec, tiny_family, tiny_ids, tiny_model
from tests.references import naive_reconstruction

SETTINGS = ReconstructionSettings(write_prior=0.02 * 320, pull=0.4, read_prior=0.05 * 320)  # of 320 tokens


def case(name: str, spec_of, dtype: torch.dtype = torch.float32):
    """A teacher with its family, and a student of it."""
    model, family = tiny_model(name, dtype=dtype), tiny_family(name)
    spec = spec_of(family.architecture(model.config))
    return model, family, spec, extract(model.state_dict(), model.config, family, spec)


@torch.no_grad()
def divergence(teacher, student, ids: torch.Tensor) -> float:
    """Mean KL(teacher || student), in nats."""
    theirs, mine = (model(ids).logits.double().log_softmax(-1) for model in (teacher, student))
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt_neox_sequential", "gpt2"])
@pytest.mark.parametrize("which", ["everything", "first attention", "layers"])
def test_weights_are_those_of_least_squares_by_the_definition(name, which):
    model, family, spec, student = case(name, lambda teacher: axis_specs(teacher)[which], torch.float64)
    wide = SubnetSpec(full_subnet(family.architecture(model.config)).hidden, spec.layers)
    by_definition = extract(model.state_dict(), model.config, family, spec)
    ids = tiny_ids(batch=10, length=32)
    naive_reconstruction(
        model, extract(model.state_dict(), model.config, family, wide), by_definition, spec, ids,
        ridge=0.02, pull=0.4, read_ridge=0.05, even=True,
    )  # fmt: skip
    settings = replace(SETTINGS, scale_norm=False)
    reconstruct(model.state_dict(), model.config, family, [(student, spec)], ids, settings)
    expected = by_definition.state_dict()
    for key, tensor in student.state_dict().items():
        assert torch.allclose(tensor, expected[key], rtol=1e-5, atol=1e-6), key


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_students_come_nearer_to_their_teacher_on_other_text(name):
    for which in ("heads", "neurons", "layers", "hidden", "everything"):
        model, family, spec, student = case(name, lambda teacher, which=which: axis_specs(teacher)[which])
        before = divergence(model, student, tiny_ids(batch=8, seed=9))
        reconstruct(model.state_dict(), model.config, family, [(student, spec)], tiny_ids(batch=30, length=32))
        assert divergence(model, student, tiny_ids(batch=8, seed=9)) < 0.9 * before, which


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_passes_in_bf16_fit_nearly_the_same(name):
    model, family, spec, student = case(name, lambda teacher: axis_specs(teacher)["everything"])
    exact, ids, other = copy.deepcopy(student), tiny_ids(batch=30, length=32), tiny_ids(batch=8, seed=9)
    before = divergence(model, student, other)
    reconstruct(model.state_dict(), model.config, family, [(exact, spec)], ids)
    settings = ReconstructionSettings(bf16=True)
    reconstruct(model.state_dict(), model.config, family, [(student, spec)], ids, settings)
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert any(not torch.equal(mine, exact.state_dict()[key]) for key, mine in student.state_dict().items())
    assert divergence(model, student, other) - divergence(model, exact, other) < 0.05 * before


@pytest.mark.parametrize("name", ["llama_untied", "gpt_neox_sequential"])
def test_no_fit_is_worse_than_the_weights_it_began_with(name):
    for seed in range(4):
        model, family, spec, student = case(name, lambda teacher, seed=seed: random_spec(teacher, seed))
        [fits] = reconstruct(model.state_dict(), model.config, family, [(student, spec)], tiny_ids(batch=8))
        assert len(fits) == sum(bool(units.kv_heads) + bool(units.neurons) for units in spec.layers)
        assert all(fit.after <= fit.before * (1 + 1e-9) for fit in fits)


def test_students_side_by_side_come_out_as_each_alone():
    model, family, _, _ = case("qwen2", full_subnet)
    specs = [random_spec(family.architecture(model.config), seed) for seed in (1, 3)]
    state, ids = model.state_dict(), tiny_ids(batch=6)
    together = [extract(state, model.config, family, spec) for spec in specs]
    alone = copy.deepcopy(together)
    reconstruct(state, model.config, family, list(zip(together, specs, strict=True)), ids)
    for student, spec in zip(alone, specs, strict=True):
        reconstruct(state, model.config, family, [(student, spec)], ids)
    for a, b in zip(together, alone, strict=True):
        assert all(torch.equal(tensor, b.state_dict()[key]) for key, tensor in a.state_dict().items())


def test_the_teacher_and_the_sizes_stay_as_they_are():
    model, family, spec, student = case("llama", lambda teacher: random_spec(teacher, 3))
    state = copy.deepcopy(model.state_dict())
    shapes = {key: tensor.shape for key, tensor in student.state_dict().items()}
    reconstruct(model.state_dict(), model.config, family, [(student, spec)], tiny_ids())
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert {key: tensor.shape for key, tensor in student.state_dict().items()} == shapes


@pytest.mark.parametrize("bias", [False, True])
def test_sums_that_stream_in_give_the_ridge_solution(bias):
    generator = torch.Generator().manual_seed(0)
    x, y, counts = (torch.randn(40, n, generator=generator).double() for n in (5, 3, 1))
    counts = counts[:, 0].abs()
    sums = Sums(5, 3, bias=bias)
    for part in (slice(0, 13), slice(13, 40)):
        sums.add(x[part], y[part], counts[part])
    update = sums.solve(0.1)
    root, scale = counts.sqrt()[:, None], (x.square() * counts[:, None]).sum(0).mean()
    held = (0.1 * scale).sqrt() * torch.eye(5).double()
    rows = torch.cat([x * root, held])
    if bias:
        rows = torch.cat([rows, torch.cat([root, torch.zeros(5, 1)])], 1)
    expected = torch.linalg.lstsq(rows, torch.cat([y * root, torch.zeros(5, 3)])).solution.T
    torch.testing.assert_close(update.weight, expected[:, :5], rtol=1e-6, atol=1e-8)
    left = y - x @ update.weight.T - (update.bias if bias else 0)
    assert update.before == pytest.approx(float((y * root).square().sum()))
    assert update.after == pytest.approx(float((left * root).square().sum()))


def test_sums_of_bf16_products_give_nearly_the_same_solution():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, generator=generator)
    y = x @ torch.randn(24, 16, generator=generator) + torch.randn(400, 16, generator=generator)
    solved = []
    for is_bf16 in (False, True):
        sums = Sums(24, 16, bias=False)
        with rough_products(is_bf16):
            sums.add(x, y)
        solved.append(sums.solve(0.1).weight)
    assert float((solved[1] - solved[0]).norm() / solved[0].norm()) < 2e-3
    assert torch.get_float32_matmul_precision() == "highest"


def test_inputs_that_are_always_zero_change_nothing():
    sums = Sums(4, 2, bias=True)
    sums.add(torch.zeros(7, 4), torch.ones(7, 2))
    update = sums.solve(0.01)
    assert not update.weight.any()
    assert update.before == update.after == pytest.approx(14)
