import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from slm_ray.search.race import (
    Rival,
    block_means,
    full_estimate,
    is_beaten,
    mean_and_stderr,
    paired_difference,
)


def noisy(mean: float, seed: int, count: int = 32, spread: float = 0.01) -> list[float]:
    """Block losses with ups and downs that all candidates share, and a little noise of their own."""
    shared = np.random.default_rng(99).normal(size=count)
    return [float(x) for x in mean + shared + spread * np.random.default_rng(seed).normal(size=count)]


@pytest.mark.parametrize(
    "count, sizes", [(1, [1]), (31, [31]), (64, [64]), (65, [65]), (127, [64, 63]), (511, [64] * 7 + [63])]
)
def test_blocks_are_near_64_positions_and_their_mean_is_the_mean(count, sizes):
    losses = np.random.default_rng(0).gamma(2.0, size=count)
    starts = np.cumsum([0, *sizes])
    expected = [losses[a:b].mean() for a, b in itertools.pairwise(starts)]
    assert block_means(losses) == pytest.approx(expected, abs=1e-5)
    assert np.mean(block_means(losses)) == pytest.approx(losses.mean(), rel=2e-3)


def test_mean_and_standard_error_in_closed_form():
    assert mean_and_stderr([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert mean_and_stderr((2.0, 2.0, 2.0)) == (2.0, 0.0)
    mean, stderr = mean_and_stderr([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and stderr == pytest.approx(math.sqrt(5 / 3 / 4))
    assert mean_and_stderr([5.0]) == (5.0, None)


def test_what_is_hard_for_both_cancels():
    rival = Rival(tuple(noisy(2.0, 1)))
    mean, stderr = paired_difference([loss + 0.125 for loss in rival.blocks[:8]], rival)
    assert mean == pytest.approx(0.125) and stderr == pytest.approx(0, abs=1e-12)
    mean, stderr = paired_difference([rival.blocks[0] + 1], rival)
    assert mean == pytest.approx(1) and stderr == math.inf
    mean, stderr = paired_difference([1.0, 2.0, 3.0], Rival((1.0, 1.0, 1.0, 9.0)))
    assert (mean, stderr) == (pytest.approx(1.0), pytest.approx(1 / math.sqrt(3)))


@pytest.mark.parametrize("confidence", [0.6, 0.9, 0.99])
def test_the_decision_is_the_rule(confidence):
    rival = Rival(tuple(noisy(2.0, 1)))
    blocks = [loss + 0.01 for loss in noisy(2.0, 2)[:8]]
    mean, stderr = paired_difference(blocks, rival)
    margin = NormalDist().inv_cdf(confidence) * stderr
    for shift, beaten in ((margin - mean + 1e-9, True), (margin - mean - 1e-9, False)):
        assert is_beaten([block + shift for block in blocks], rival, confidence) is beaten


def test_a_clearly_worse_candidate_is_beaten_at_once_and_a_better_one_never():
    rival = Rival(tuple(noisy(2.0, 1)))
    for seed in range(2, 30):
        assert is_beaten(noisy(2.1, seed)[:6], rival, 0.9)
        assert not any(is_beaten(noisy(1.9, seed)[:stop], rival, 0.6) for stop in range(1, 33))


def test_nothing_is_decided_without_rival_or_on_few_blocks_or_at_the_end():
    rival = Rival(tuple(noisy(2.0, 1)))
    worse = noisy(9.0, 2)
    assert not is_beaten(worse, None, 0.6)
    assert not is_beaten(worse[:5], rival, 0.6)
    assert is_beaten(worse[:6], rival, 0.6)
    assert not is_beaten(worse, rival, 0.6)  # fully measured: the front decides


def test_the_estimate_is_the_rivals_mean_plus_the_paired_difference():
    rival = Rival((1.0, 2.0, 3.0, 6.0))
    assert rival.mean == 3.0
    assert full_estimate([1.5, 2.5], rival) == pytest.approx(3.5)
    assert full_estimate([1.5, 2.5], None) == pytest.approx(2.0)
    assert full_estimate([1.0, 1.0, 1.0, 1.0], rival) == pytest.approx(1.0)  # all measured: its own mean
