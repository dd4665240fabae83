"""Intervals and differences: closed forms, references, and that 95% of them hold what they should."""

import math

import numpy as np
import pytest

from slm_ray.evaluate.compare import WITHIN_NOISE, compare_group, compare_samples, compare_text, verdict
from slm_ray.evaluate.intervals import ratio_interval, ratio_stderr, wilson_interval
from slm_ray.evaluate.text_loss import text_record

NAMES = ("mine", "its")


def record(losses, counts, *, tokens="t", text=None, sizes=None, scale=1.0, stderr=0.1):
    header = {"name": "d", "key": "k", "settings": {}, "model": "m", "params": 1, "seconds": 0}
    found = text_record(
        header, np.array(losses, float), np.array(counts, float), scale * sum(losses) / sum(counts),
        num_bytes=sum(sizes) if sizes else 100, unit_bytes=sizes, text_digest=text, tokens_digest=tokens, corpus="c",
        corpus_digest=None, sequence_length=8,
    )  # fmt: skip
    return found.model_copy(update={"figures": found.figures.model_copy(update={"bits_per_byte_stderr": stderr})})


def test_the_standard_error_of_equal_counts_is_that_of_a_mean():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    assert ratio_stderr(values, np.ones(4)) == pytest.approx(values.std(ddof=1) / 2)
    assert ratio_stderr(values * 5, np.full(4, 5.0)) == pytest.approx(values.std(ddof=1) / 2)
    assert ratio_stderr(values[:1], np.ones(1)) is None and ratio_stderr(values, np.zeros(4)) is None


def test_wilson_intervals_solve_their_equation():
    for successes, number in ((0, 5), (3.5, 10), (10, 10), (45, 50)):
        for end in wilson_interval(successes, number):
            if 1e-9 < end < 1 - 1e-9:
                distance = abs(successes / number - end) / math.sqrt(end * (1 - end) / number)
                assert distance == pytest.approx(1.959963984540054)


def test_an_interval_is_seeded_and_of_no_width_where_all_say_the_same():
    values, counts = np.random.default_rng(0).normal(size=30), np.ones(30)
    assert ratio_interval(values, counts) == ratio_interval(values, counts)
    assert ratio_interval(np.arange(1.0, 5.0), np.arange(1.0, 5.0)) == (1, 1)
    assert ratio_interval(values[:1], counts[:1]) is None and ratio_interval(np.array([]), np.array([])) is None


@pytest.mark.parametrize("number", [40, 1200])
def test_intervals_hold_the_true_value_about_as_often_as_they_say(number):
    rng, held, tries = np.random.default_rng(1), 0, 40
    for _ in range(tries):
        counts = rng.integers(5, 20, number).astype(float)
        totals = counts * rng.gamma(2.0, 1.0, number)  # skewed, mean 2
        low, high = ratio_interval(totals, counts)
        held += low <= 2.0 <= high
    assert 0.85 <= held / tries <= 1


def test_verdicts_follow_the_interval_and_the_direction():
    assert verdict(-1, (-2, -0.5), "less") == "better" and verdict(-1, (-2, -0.5), "more") == "worse"
    assert verdict(1, (0.5, 2), "less") == "worse" and verdict(1, (0.5, 2), "more") == "better"
    assert verdict(1, (-0.1, 2), "more") == WITHIN_NOISE and verdict(1, None, "more") == "noise not known"


def test_pairs_take_out_what_is_hard_for_both():
    rng = np.random.default_rng(2)
    hard = rng.gamma(2, 50, 60)
    counts = [10] * 60
    found = compare_text(NAMES, record(hard + 1, counts), record(hard + rng.normal(0, 0.1, 60), counts))
    assert found.paired and found.quantity == "loss" and found.verdict == "worse"
    assert found.difference == pytest.approx(0.1, abs=0.01) and found.high - found.low < 0.02


def test_other_tokens_of_the_same_documents_are_compared_in_bits_of_each_document():
    sizes = [10, 20, 30]
    mine = record([5, 10, 15], [3, 6, 9], tokens="a", text="same", sizes=sizes, scale=0.4)
    other = record([4, 8, 12], [2, 4, 6], tokens="b", text="same", sizes=sizes, scale=0.3)
    found = compare_text(NAMES, mine, other)
    assert found.paired and found.quantity == "bits_per_byte"
    assert found.difference == pytest.approx(mine.figures.bits_per_byte - other.figures.bits_per_byte)
    apart = compare_text(NAMES, mine, record([4, 8, 12], [2, 4, 6], tokens="b", text="another", sizes=sizes))
    assert not apart.paired and apart.stderr == pytest.approx(math.hypot(0.1, 0.1))
    unknown = compare_text(NAMES, mine, record([4, 8, 12], [2, 4, 6], tokens="b", stderr=None))
    assert unknown.verdict == "noise not known" and unknown.low is None


def test_a_groups_difference_is_the_weighted_mean_of_its_tasks():
    first, second = ([1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]), ([0.2, 0.4], [0.1, 0.1])
    found = compare_group(NAMES, "g", "acc", [(0.75, *first), (0.25, *second)])
    parts = [compare_samples(NAMES, "task", "t", "acc", *values) for values in (first, second)]
    assert found.difference == pytest.approx(0.75 * 0.25 + 0.25 * 0.2)
    assert found.stderr == pytest.approx(math.hypot(0.75 * parts[0].stderr, 0.25 * parts[1].stderr))
    assert compare_group(NAMES, "g", "acc", [(1.0, [1.0], [0.0])]).verdict == "noise not known"
