"""The contract that every family keeps: one test each over all its axes, with tiny models in this process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from slm_ray.distill.divergences import Divergence
from slm_ray.distill.selection import top_k
from slm_ray.distill.signal import DenseSignal
from slm_ray.models.extraction import extract, save_student
from slm_ray.models.families import base_family, config_architecture
from slm_ray.models.gates import GatedTeacher
from slm_ray.models.lm_head import cap_of, capped, final_hidden
from slm_ray.models.reconstruction import reconstruct
from slm_ray.models.runner import SubnetRunner
from slm_ray.pretrain.module import StudentLoss
from slm_ray.records.cost import flops_per_token, kv_bytes_per_token, num_params
from slm_ray.records.subnet import full_subnet
from tests.models.tiny import ALL, axis_specs, tiny_family, tiny_ids, tiny_model
from tests.references import gated_loss, masked_logits

IDS, PROMPT = tiny_ids(), tiny_ids(batch=2, length=7)  # longer than the tiny windows


class Case:
    """A family's tiny teacher and its students, one per axis."""

    def __init__(self, name: str) -> None:
        self.name, self.model, self.family = name, tiny_model(name), tiny_family(name)
        self.state, self.config = self.model.state_dict(), self.model.config
        self.sizes = self.family.architecture(self.config)
        self.specs = {"nothing": full_subnet(self.sizes), **axis_specs(self.sizes)}
        self.students = {axis: self.cut(spec) for axis, spec in self.specs.items()}

    def cut(self, spec):
        return extract(self.state, self.config, self.family, spec)


@pytest.fixture(scope="module", params=ALL)
def case(request) -> Case:
    return Case(request.param)


@torch.no_grad()
def logits_of(model, ids=IDS, **options):
    return model(ids, use_cache=False, **options).logits


def test_students_are_the_masked_teacher_and_the_runner_agrees(case):
    runner = SubnetRunner(case.state, case.config, case.family)
    for axis, student in case.students.items():
        found, spec = logits_of(student), case.specs[axis]
        expected = masked_logits(case.model, spec, IDS)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max(), axis
        assert axis == "nothing" or not torch.allclose(expected, logits_of(case.model), atol=1e-2)
        losses = functional.cross_entropy(found[:, :-1].transpose(1, 2), IDS[:, 1:], reduction="none")
        torch.testing.assert_close(runner.token_losses(spec, IDS), losses, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            hidden, head = final_hidden(student, IDS), student.get_output_embeddings().weight
        logits = capped(functional.linear(hidden, head), cap_of(student))
        torch.testing.assert_close(logits, found, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits_of(case.students["nothing"]), logits_of(case.model))


def test_costs_are_what_torch_counts(case):
    for axis, student in case.students.items():
        sizes = case.specs[axis].architecture_in(case.sizes)
        assert num_params(sizes) == sum(parameter.numel() for parameter in student.parameters()), axis
        assert config_architecture(student.config) == sizes, axis
    student, sizes = case.cut(case.specs["everything"]), case.specs["everything"].architecture_in(case.sizes)
    student.set_attn_implementation("eager")  # torch does not count the fused kernels on a CPU
    if sizes.structure.expert_size:
        student.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(IDS[:, :4], use_cache=False)  # within every window
    assert flops_per_token(sizes, 4) * 8 == counter.get_total_flops()
    with torch.no_grad():
        cache = student(IDS[:, :4], use_cache=True).past_key_values
    held = [tensor.nbytes for layer in cache.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
    assert kv_bytes_per_token(sizes, 4, 4) * 8 == sum(held)


def test_windows_bound_costs(case):
    windows = [layer.sliding_window for layer in case.sizes.layers]
    heads, width = case.sizes.layers[0].num_attention_heads, case.sizes.structure.head_dim
    longer = sum(10 if not window else 0 for window in windows)
    assert flops_per_token(case.sizes, 20) - flops_per_token(case.sizes, 10) == 4 * heads * width * longer
    shares = sum(0.25 if window else 1 for window in windows) / len(windows)  # 5 of 20 tokens are held
    assert kv_bytes_per_token(case.sizes, sequence_length=20) == shares * kv_bytes_per_token(case.sizes)


def generate(model, prompt, **options):
    options.setdefault("attention_mask", torch.ones_like(prompt))
    return model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0, **options)


def test_generation_needs_no_cache_and_ignores_padding(case):
    for axis in ("first attention", "everything"):
        student = case.students[axis]
        without = generate(student, PROMPT, use_cache=False)
        assert torch.equal(generate(student, PROMPT), without), axis
    padded = torch.cat([torch.zeros_like(PROMPT[:, :3]), PROMPT], dim=1)
    mask = torch.cat([torch.zeros_like(PROMPT[:, :3]), torch.ones_like(PROMPT)], dim=1)
    assert torch.equal(generate(student, padded, attention_mask=mask)[:, 3:], without)


def test_saved_students_come_back_bit_for_bit(case, tmp_path):
    for axis in ("layers", "everything"):
        student = case.students[axis]
        save_student(student, tmp_path / axis)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / axis)
        assert type(again) is type(student) and torch.equal(logits_of(again), logits_of(student))
        assert base_family(AutoConfig.from_pretrained(tmp_path / axis)) is case.family
    half = extract(case.state, case.config, case.family, case.specs["everything"], dtype=torch.bfloat16)
    exact = logits_of(case.students["everything"])
    away = (logits_of(half).float() - exact).abs()  # rounding sends some tokens to other experts
    assert (away.mean() if case.sizes.structure.expert_size else away.max()) < 0.15 * exact.abs().max()


def test_every_weight_learns_and_checkpointing_changes_nothing(case):
    gradients = []
    for checkpointing in (False, True):
        student = case.cut(case.specs["everything"]).train()
        if checkpointing:
            student.gradient_checkpointing_enable()
        student(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in student.named_parameters()})
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_training_has_the_loss_and_gradient_of_whole_logits(case):
    student, head = case.cut(case.specs["hidden"]).train(), case.model.get_output_embeddings().weight.detach()
    with torch.no_grad():
        signal = DenseSignal(final_hidden(case.model, IDS)[:, :-1].flatten(0, 1), head, cap_of(case.model))
    weights = torch.full((IDS[:, 1:].numel(),), 1 / IDS[:, 1:].numel())
    found = StudentLoss(student, Divergence(), torch.float32)(IDS, None, weights, signal, 0.4)[0]
    mine = student(IDS, use_cache=False).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    theirs = logits_of(case.model)[:, :-1].flatten(0, 1).log_softmax(-1)
    divergence = (theirs.exp() * (theirs - mine)).sum(-1).mean()
    expected = 0.6 * functional.nll_loss(mine, IDS[:, 1:].flatten()) + 0.4 * divergence
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    likeliest = top_k(signal.hidden, signal.head, 3, 1.0, signal.cap)
    torch.testing.assert_close(likeliest.log_probs, theirs.topk(3).values, rtol=1e-4, atol=1e-4)
    gradients = []
    for loss in (found, expected):
        student.zero_grad()
        loss.backward()
        gradients.append({key: parameter.grad.clone() for key, parameter in student.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_gates_are_those_of_automatic_differentiation(case):
    double = tiny_model(case.name).double()
    shape, layers = case.sizes.layers[0], case.sizes.num_hidden_layers
    sizes = (layers, shape.num_attention_heads), (layers, shape.intermediate_size), (case.sizes.hidden_size,)
    gates = [torch.ones(len(IDS), 1, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    losses = gated_loss(double, IDS, *gates)
    total = losses.sum()
    found = GatedTeacher(case.state, case.config, case.family).gradients(IDS)
    assert found.loss == pytest.approx(float(total.detach()), rel=1e-4)
    wanted = [gradient[:, 0].numpy() for gradient in torch.autograd.grad(total, gates)]
    for part, gradient in zip(("query_heads", "neurons", "hidden"), wanted, strict=True):
        np.testing.assert_allclose(getattr(found, part), gradient, rtol=2e-3, atol=2e-3 * np.abs(gradient).max())


def divergence(case: Case, student) -> float:
    ids = tiny_ids(batch=6, seed=9)
    theirs, mine = (logits_of(model, ids).double().log_softmax(-1) for model in (case.model, student))
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


def test_reconstruction_brings_students_nearer_and_leaves_the_whole_as_it_is(case):
    axes = ("nothing", "neurons", "first attention", "everything")
    students = [(case.cut(case.specs[axis]), case.specs[axis]) for axis in axes]
    fits = reconstruct(case.state, case.config, case.family, students, tiny_ids(batch=24, length=32))
    for axis, (student, _) in list(zip(axes, students, strict=True))[1:]:
        assert divergence(case, student) < 0.95 * divergence(case, case.students[axis]), axis
    whole = students[0][0].state_dict()
    for key, tensor in case.state.items():
        torch.testing.assert_close(whole[key], tensor, rtol=1e-4, atol=2e-5)
    assert all(fit.after <= fit.before * (1 + 1e-9) for each in fits for fit in each)
