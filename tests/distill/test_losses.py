import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slm_ray.config.errors import UserError
from slm_ray.distill.config import DIVERGENCES, KINDS
from slm_ray.distill.divergences import Divergence
from slm_ray.distill.losses import causal_lm_loss
from slm_ray.distill.signal import DenseSignal, SparseSignal
from tests.references import naive_distillation

TOKENS, WORDS, WIDTH, TEACHER_WIDTH = 6, 13, 5, 3
REFUSED = {
    "top-k": ["reverse_kl", "symmetric"],
    "sampled": ["reverse_kl", "symmetric", "jensen_shannon", "total_variation"],
}
ALLOWED = [(kind, name) for kind in KINDS for name in DIVERGENCES if name not in REFUSED.get(kind, [])]


def drawn(*shape, seed, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Case:
    """A small batch, its teacher, and every kind of signal from it."""

    def __init__(self, dtype=torch.double):
        self.hidden, self.head = drawn(TOKENS, WIDTH, seed=1).to(dtype), drawn(WORDS, WIDTH, seed=2).to(dtype)
        self.teacher = DenseSignal(drawn(TOKENS, TEACHER_WIDTH, seed=3), drawn(WORDS, TEACHER_WIDTH, seed=4))
        self.targets = torch.arange(TOKENS) * 2 % WORDS
        self.weights = torch.tensor([0.3, 0.0, 0.1, 0.25, 0.0, 0.2], dtype=torch.double)  # two tokens do not count
        self.targets[1] = -100

    def signal(self, kind, temperature=1.0, k=4):
        if kind == "full":
            return self.teacher
        probs = (self.teacher.hidden @ self.teacher.head.T / temperature).softmax(-1)
        if kind == "sampled":
            generator = torch.Generator().manual_seed(5)
            draws = torch.multinomial(probs, 9, True, generator=generator)
            counts = torch.zeros(TOKENS, len(self.teacher.head)).double()
            counts.scatter_add_(1, draws, torch.ones(TOKENS, 9).double())
            values, ids = counts.topk(min(9, counts.shape[1]), -1)  # most rows have fewer than 9 ids: unused slots
            return SparseSignal("sampled", ids, (values / 9).log(), None, temperature)
        values, ids = probs.topk(k, -1)
        tail = probs.scatter(1, ids, 0).sum(-1).log() if kind == "top-k-tail" else None
        return SparseSignal(kind, ids, values.log(), tail, temperature)

    def run(self, signal, divergence, ce_weight=0.3, kd_weight=0.7):
        hidden, head = self.hidden.clone().requires_grad_(), self.head.clone().requires_grad_()
        parts = causal_lm_loss(
            hidden, head, self.targets, self.weights, ce_weight=ce_weight, kd_weight=kd_weight, signal=signal,
            divergence=divergence,
        )  # fmt: skip
        (3 * parts.loss).backward()
        return parts, hidden.grad, head.grad

    def naive(self, signal, divergence, ce_weight=0.3, kd_weight=0.7):
        hidden = self.hidden.double().clone().requires_grad_()
        head = self.head.double().clone().requires_grad_()
        ce = kd = torch.zeros(()).double()
        for token, weight in enumerate(self.weights.tolist()):
            if not weight:
                continue
            given = {}
            if isinstance(signal, DenseSignal):
                given["full"] = signal.head @ signal.hidden[token]
            else:
                rows = zip(signal.ids[token].tolist(), signal.log_probs[token].exp().tolist(), strict=True)
                exponent = signal.temperature / divergence.temperature
                given["words"] = [(word, chance**exponent) for word, chance in rows if chance]
                if signal.tail_log_mass is not None:
                    given["tail"] = signal.tail_log_mass[token].exp().item()
            logits, target = head @ hidden[token], int(self.targets[token])
            rows = min(signal.head.shape[0] if isinstance(signal, DenseSignal) else signal.num_rows or WORDS, WORDS)
            if "full" in given:
                given["full"] = given["full"][:rows]
            one, _ = naive_distillation(divergence.name, logits, target, divergence.temperature, full=logits)
            _, other = naive_distillation(divergence.name, logits[:rows], 0, divergence.temperature, **given)
            ce, kd = ce + weight * one, kd + weight * other
        (3 * (ce_weight * ce + kd_weight * kd)).backward()
        return ce.detach(), kd.detach(), hidden.grad, head.grad


def check(case, signal, divergence, rtol=1e-9, atol=1e-10, **weights):
    parts, hidden, head = case.run(signal, divergence, **weights)
    ce, kd, wanted_hidden, wanted_head = case.naive(signal, divergence, **weights)
    total, given = case.weights.sum(), {"ce_weight": 0.3, "kd_weight": 0.7, **weights}
    for found, wanted in [
        (parts.ce, ce / total),
        (parts.kd, kd / total),
        (parts.loss.detach(), given["ce_weight"] * ce + given["kd_weight"] * kd),
        (hidden, wanted_hidden),
        (head, wanted_head),
    ]:
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("kind", "name"), ALLOWED)
def test_value_and_gradients_are_those_of_the_definition(kind, name, temperature):
    case = Case()
    check(case, case.signal(kind, temperature), Divergence(name=name, temperature=temperature))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("k", [1, WORDS])
def test_one_word_and_all_words(name, k):
    case = Case()
    for kind in ("top-k", "top-k-tail"):
        if name not in REFUSED.get(kind, []):
            check(case, case.signal(kind, k=k), Divergence(name=name))
    if k == WORDS:
        every, whole = case.signal("top-k-tail", k=k), case.teacher
        assert every.tail_log_mass.isneginf().all()
        for found, wanted in zip(
            case.run(every, Divergence(name=name))[1:], case.run(whole, Divergence(name=name))[1:], strict=True
        ):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("teacher_rows", [WORDS - 4, WORDS + 3])
@pytest.mark.parametrize(("kind", "name"), ALLOWED)
def test_only_rows_that_both_have_count(kind, name, teacher_rows):
    """Vocabularies padded differently: both distributions are renormalised over the shared ids."""
    case, temperature = Case(), 2.0
    case.teacher = DenseSignal(case.teacher.hidden, drawn(teacher_rows, TEACHER_WIDTH, seed=4))
    signal, shared = case.signal(kind, temperature), min(teacher_rows, WORDS)
    if kind != "full":  # a store's: over the ids of the tokenizer, which all models of it have rows for
        case.teacher = DenseSignal(case.teacher.hidden, case.teacher.head[:shared])
        signal = dataclasses.replace(case.signal(kind, temperature), num_rows=shared)
    check(case, signal, Divergence(name=name, temperature=temperature))
    assert case.run(signal, Divergence(name=name, temperature=temperature))[2].abs().sum(1).min() > 0  # all learn


@pytest.mark.parametrize(("kind", "name"), ALLOWED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_are_near(kind, name, dtype):
    case = Case(dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 0.05
    check(case, case.signal(kind), Divergence(name=name), rtol=tolerance, atol=tolerance)


def test_a_head_is_brought_to_another_temperature_and_nothing_else_is():
    case = Case()
    check(case, case.signal("top-k", 0.5), Divergence(temperature=3.0))
    for kind in ("top-k-tail", "sampled"):
        with pytest.raises(UserError, match=f"{kind} targets .* 0.5 .* 3"):
            case.run(case.signal(kind, 0.5), Divergence(temperature=3.0))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_unused_slots_change_nothing(name):
    case = Case()
    plain = case.signal("top-k-tail")
    for word in (0, WORDS - 1, None):  # an unused slot may name any word, used ones too
        extra = plain.ids[:, :1] if word is None else torch.full_like(plain.ids[:, :1], word)
        ids = torch.cat([extra, plain.ids, extra], 1)
        log_probs = torch.nn.functional.pad(plain.log_probs, (1, 1), value=-math.inf)
        padded = SparseSignal("top-k-tail", ids, log_probs, plain.tail_log_mass)
        results = [case.run(signal, Divergence(name=name)) for signal in (plain, padded)]
        for found, wanted in zip(results[1][1:], results[0][1:], strict=True):
            torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(results[1][0].loss, results[0][0].loss)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_an_empty_tail_and_extreme_logits_stay_finite(name, scale, temperature):
    case = Case(torch.float32)
    case.hidden *= scale
    top = case.signal("top-k-tail", temperature)
    empty = SparseSignal("top-k-tail", top.ids, top.log_probs, torch.full((TOKENS,), -math.inf), temperature)
    far = DenseSignal(case.teacher.hidden.float() * scale, case.teacher.head.float())
    for signal in (empty, top, far):
        parts, hidden, head = case.run(signal, Divergence(name=name, temperature=temperature))
        assert all(torch.isfinite(found).all() for found in (parts.loss, parts.kd, hidden, head))


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "soft_ce"])
def test_a_tail_bucket_is_a_coarsening(name):
    case, divergence = Case(), Divergence(name=name)
    values = [case.run(case.signal("top-k-tail", k=k), divergence)[0].kd for k in (1, 3, 6, WORDS)]
    full = case.run(case.teacher, divergence)[0].kd
    assert all(coarse <= fine + 1e-12 for coarse, fine in zip(values, [*values[1:], full], strict=True))
    assert values[0] < 0.95 * full


def test_sampled_targets_are_unbiased_over_every_possible_draw():
    hidden, head = drawn(1, 2, seed=1), drawn(4, 2, seed=2)
    teacher = DenseSignal(drawn(1, 2, seed=3), drawn(4, 2, seed=4))
    probs = (teacher.hidden @ teacher.head.T).softmax(-1)[0]

    def run(signal, name):
        student = hidden.clone().requires_grad_()
        parts = causal_lm_loss(
            student, head, torch.tensor([1]), torch.ones(1), ce_weight=0.0, kd_weight=1.0, signal=signal,
            divergence=Divergence(name=name),
        )  # fmt: skip
        parts.loss.backward()
        return parts.kd, student.grad

    expected_value, expected_gradient = torch.zeros(()).double(), torch.zeros(1, 2).double()
    for draws in torch.cartesian_prod(*[torch.arange(4)] * 3):  # three draws with replacement
        ids, counts = draws.unique(return_counts=True)
        signal = SparseSignal("sampled", ids[None], (counts / 3.0).log()[None])
        chance = probs[draws].prod()
        value, gradient = run(signal, "soft_ce")
        expected_value += chance * value
        expected_gradient += chance * run(signal, "forward_kl")[1]
        torch.testing.assert_close(gradient, run(signal, "forward_kl")[1])
    torch.testing.assert_close(expected_value, run(teacher, "soft_ce")[0])
    torch.testing.assert_close(expected_gradient, run(teacher, "forward_kl")[1])


@pytest.mark.parametrize(("kind", "name"), ALLOWED)
def test_no_tensor_of_tokens_by_vocabulary(kind, name):
    tokens, words, k = 64, 4096, 5
    hidden, head = drawn(tokens, 4, seed=1).float().requires_grad_(), drawn(words, 4, seed=2).float().requires_grad_()
    ids = torch.arange(k).expand(tokens, k).contiguous()
    log_probs = torch.full((tokens, k), math.log(0.1))
    tail = torch.full((tokens,), math.log(0.5)) if kind == "top-k-tail" else None
    teacher = DenseSignal(drawn(tokens, 3, seed=3).float(), drawn(words, 3, seed=4).float())
    signal = teacher if kind == "full" else SparseSignal(kind, ids, log_probs, tail)
    with LargestTensor() as largest:
        causal_lm_loss(
            hidden, head, torch.arange(tokens), torch.ones(tokens), kd_weight=1.0, signal=signal,
            divergence=Divergence(name=name),
        ).loss.backward()  # fmt: skip
    assert tokens * words // 4 < largest.numel <= tokens * words // 2


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return result
