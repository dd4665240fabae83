import math

import pytest
import torch

from slm_ray.config.errors import UserError
from slm_ray.distill import losses
from slm_ray.distill.config import check_loss
from slm_ray.distill.losses import causal_lm_loss
from slm_ray.distill.signal import DenseSignal, SparseSignal
from tests.references import naive_losses

TOKENS, WORDS, WIDTH = 7, 11, 4


def drawn(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def student(dtype=torch.float32, head_dtype=None, tokens=TOKENS):
    hidden = drawn(tokens, WIDTH, seed=1, dtype=dtype).requires_grad_()
    return hidden, drawn(WORDS, WIDTH, seed=2, dtype=head_dtype or dtype).requires_grad_()


def batch(tokens=TOKENS):
    return torch.arange(tokens) % WORDS, torch.full((tokens,), 1 / max(1, tokens))


TEACHER = DenseSignal(drawn(TOKENS, 3, seed=3), drawn(WORDS, 3, seed=4))


def test_without_a_teacher_it_is_the_mean_cross_entropy():
    hidden, head = student()
    parts = causal_lm_loss(hidden, head, *batch(), signal=TEACHER)  # a signal of weight 0 is not looked at
    wanted = naive_losses(hidden.detach(), head.detach(), batch()[0]).mean()
    torch.testing.assert_close(parts.loss.detach().double(), wanted, rtol=1e-6, atol=1e-6)
    assert parts.kd is None and not parts.ce.requires_grad
    torch.testing.assert_close(parts.ce, parts.loss.detach())


@pytest.mark.parametrize("chunk_logits", [1, 2 * WORDS, 3 * WORDS, 10**6])
@pytest.mark.parametrize("block_logits", [1, 2 * WORDS, 10**6])
def test_results_do_not_depend_on_chunks_and_blocks(monkeypatch, chunk_logits, block_logits):
    def run():
        hidden, head = student()
        parts = causal_lm_loss(hidden, head, *batch(), kd_weight=0.5, signal=TEACHER)
        parts.loss.backward()
        return parts.loss.detach(), hidden.grad, head.grad

    wanted = run()
    monkeypatch.setattr(losses, "_CHUNK_LOGITS", {"cpu": chunk_logits})
    monkeypatch.setattr(losses, "_BLOCK_LOGITS", {"cpu": block_logits})
    torch.testing.assert_close(run(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16])
def test_types_may_be_mixed(dtype, head_dtype):
    hidden, head = student(dtype, head_dtype)
    parts = causal_lm_loss(hidden, head, *batch(), kd_weight=0.5, signal=TEACHER)
    parts.loss.backward()
    assert parts.loss.dtype == torch.float32 and hidden.grad.dtype == dtype and head.grad.dtype == head_dtype
    exact = student()
    causal_lm_loss(*exact, *batch(), kd_weight=0.5, signal=TEACHER).loss.backward()
    torch.testing.assert_close(hidden.grad.float(), exact[0].grad, rtol=0.05, atol=3e-3)
    torch.testing.assert_close(head.grad.float(), exact[1].grad, rtol=0.05, atol=3e-3)


def test_small_weights_survive_half_precision():
    """A loss scale in the backward pass brings back what fp16 alone would have rounded to nothing."""
    hidden, head = student(torch.float16)
    targets, weights = batch()
    (causal_lm_loss(hidden, head, targets, weights * 1e-6).loss * 1e6).backward()
    exact = student()
    causal_lm_loss(*exact, targets, weights).loss.backward()
    torch.testing.assert_close(hidden.grad.float(), exact[0].grad, rtol=0.05, atol=3e-3)


@pytest.mark.parametrize("tokens", [0, 3])
def test_no_token_that_counts(tokens):
    hidden, head = student(tokens=tokens)
    for kind in ("full", "top-k"):
        signal = DenseSignal(drawn(tokens, 3, seed=3), TEACHER.head)
        if kind == "top-k":
            signal = SparseSignal("top-k", torch.zeros(tokens, 1).long(), torch.zeros(tokens, 1))
        parts = causal_lm_loss(
            hidden, head, torch.full((tokens,), -100), torch.zeros(tokens), kd_weight=1.0, signal=signal
        )
        parts.loss.backward()
        assert parts.loss == parts.ce == parts.kd == 0
        assert not hidden.grad.any() and not head.grad.any()


def test_tokens_that_do_not_count_are_not_computed():
    hidden, head = student()
    targets, weights = batch()
    with torch.no_grad():
        hidden[2] = math.nan
        weights[2], targets[2] = 0, -100
    parts = causal_lm_loss(hidden, head, targets, weights, kd_weight=1.0, signal=TEACHER)
    parts.loss.backward()
    assert torch.isfinite(parts.loss) and torch.isfinite(head.grad).all()
    assert not hidden.grad[2].any() and hidden.grad[3].any()


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (SparseSignal("top-k", torch.full((TOKENS, 1), WORDS), torch.zeros(TOKENS, 1)), "names id 11 .* 11 rows"),
        (SparseSignal("top-k", torch.zeros(TOKENS, 12).long(), torch.zeros(TOKENS, 12)), "k must be .* 12 .* 11"),
    ],
)
def test_another_vocabulary_is_refused(signal, words):
    with pytest.raises(UserError, match=words):
        causal_lm_loss(*student(), *batch(), kd_weight=1.0, signal=signal)


def test_targets_outside_the_vocabulary_are_refused():
    with pytest.raises(UserError, match="for, 0 to 10, but they are 3 to 11"):
        causal_lm_loss(*student(tokens=2), torch.tensor([3, 11]), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("reverse_kl", "top-k", "reverse_kl is infinite with top-k .* forward_kl, jensen_shannon"),
        ("symmetric", "top-k", "infinite"),
        ("jensen_shannon", "sampled", "biased with sampled .* use one of forward_kl, soft_ce"),
        ("reverse_kl", "everything", "unknown kind of distillation"),
    ],
)
def test_divergences_that_do_not_go_with_a_signal(name, kind, words):
    with pytest.raises(UserError, match=words):
        check_loss(name, kind)
