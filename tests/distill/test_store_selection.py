"""Top-k words and drawn words against torch's own top-k, softmax in float64 and the definition of a draw."""

from __future__ import annotations

import math

import pytest
import torch

from slm_ray.config.errors import UserError
from slm_ray.distill.selection import sample, top_k

SIZES = (5, 61, 4096, 9001)  # words: below a block, below a slice, a slice, two slices and a bit


def random_case(vocabulary: int, dtype: torch.dtype, tokens: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(tokens, 8, generator=generator).to(dtype)
    return hidden, torch.randn(vocabulary, 8, generator=generator).to(dtype)


def reference(hidden: torch.Tensor, head: torch.Tensor, temperature: float) -> torch.Tensor:
    """``[tokens, vocabulary]`` float64 log-probabilities of the logits as the type gives them."""
    return torch.log_softmax((hidden @ head.T).double() / temperature, -1)


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 4.0])
def test_the_top_words_are_those_of_torch_topk(vocabulary: int, dtype: torch.dtype, temperature: float) -> None:
    hidden, head = random_case(vocabulary, dtype)
    logs = reference(hidden, head, temperature)
    for k in (1, min(5, vocabulary), min(40, vocabulary), vocabulary):
        found = top_k(hidden, head, k, temperature)
        values, _ = logs.topk(k)
        torch.testing.assert_close(found.log_probs.double(), values, rtol=1e-4, atol=1e-4)
        # Multiplied in slices, logits may differ in their last digit, and with it the order of near ties.
        torch.testing.assert_close(logs.gather(1, found.ids), values, rtol=1e-2, atol=1e-2)
        assert all(len(set(row)) == k for row in found.ids.tolist())
        rest = logs.exp().sum(1) - logs.gather(1, found.ids).exp().sum(1)
        torch.testing.assert_close(found.tail_log_mass.exp().double(), rest, rtol=1e-3, atol=1e-6)
    assert found.tail_log_mass.tolist() == [-math.inf] * len(hidden)  # k is the vocabulary: nothing is left


def test_equal_logits_give_the_values_of_torch_topk() -> None:
    """Words tie across blocks and slices: which of them are taken is free, their values are not."""
    hidden = torch.ones(3, 1)
    head = torch.randint(0, 4, (9001, 1), generator=torch.Generator().manual_seed(0)).float()
    found = top_k(hidden, head, 3000)
    logits = (hidden @ head.T).double()
    assert torch.equal(logits.gather(1, found.ids), logits.topk(3000).values)
    assert all(len(set(row)) == 3000 for row in found.ids.tolist())


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_a_tail_keeps_its_digits_however_small(gap: float) -> None:
    head = torch.zeros(1000, 1)
    head[[7, 500], 0] = gap
    found = top_k(torch.ones(1, 1), head, 2)
    expected = math.log(998) - math.log(2 * math.exp(gap) + 998)
    assert found.tail_log_mass.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_word_is_drawn_by_just_its_share_of_the_points(vocabulary: int, temperature: float) -> None:
    """Evenly spread points give every word its probability, to one point more or less: draws are unbiased exactly."""
    hidden, head = random_case(vocabulary, torch.float32, tokens=3)
    draws = 20000
    points = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).expand(3, -1)
    found = sample(hidden, head, points, temperature)
    probabilities = reference(hidden, head, temperature).exp()
    start = 0
    for row, length in enumerate(found.lengths.tolist()):
        counts = torch.zeros(vocabulary, dtype=torch.float64)
        ids = found.ids[start : start + length]
        assert (ids.diff() > 0).all()
        counts[ids] = found.counts[start : start + length].double()
        assert counts.sum() == draws
        assert (counts - draws * probabilities[row]).abs().max() <= 1.1
        start += length
    assert start == len(found.ids) == len(found.counts)


def test_words_of_no_probability_are_never_drawn() -> None:
    head = torch.full((61, 1), -1000.0)
    head[[3, 40], 0] = 0.0
    edge = torch.tensor([[0.0, 0.5, 1 - 2**-53]], dtype=torch.float64)
    found = sample(torch.ones(1, 1), head, edge)
    assert set(found.ids.tolist()) <= {3, 40}


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="no finite numbers"):
        top_k(torch.full((2, 1), math.nan), torch.ones(61, 1), 3)
