"""Tokens and FLOPs to match, on made-up curves whose answers are seen at a glance."""

from __future__ import annotations

import pytest

from slm_ray.report.matching import (
    Curve,
    Match,
    Point,
    equal_flops,
    match,
    reach,
    table,
)
from slm_ray.report.text import flops_text


def curve(name, losses, *, flops_per_token=10.0, every=100, **costs):
    points = tuple(Point(i * every, i * every * flops_per_token, loss) for i, loss in enumerate(losses))
    return Curve(name, points, **costs)


RANDOM = curve("random", [10.0, 8.0, 7.0, 6.5, 6.0])
FIRST_N = curve("first-n", [9.0, 6.2, 5.0, 4.5, 4.0])
WINNER = curve("winner", [5.0, 4.4, 4.0, 3.5, 3.3], flops_per_token=20.0, teacher_flops=4000.0, search_flops=600.0,
               capture_flops=400.0)  # fmt: skip


def test_a_loss_is_reached_at_the_first_evaluation_at_or_below_it():
    assert reach(RANDOM, 7.0) == (200, 2000.0)
    assert reach(RANDOM, 6.9) == (300, 3000.0)  # nothing between two evaluations counts
    assert reach(WINNER, 10.0) == (0, 1000.0)  # search and capture
    assert reach(RANDOM, 5.9) is None


def test_ratios_count_search_and_capture():
    assert match(WINNER, FIRST_N) == Match(200, 5000.0, 400 / 200, 4000.0 / 5000.0)
    assert match(FIRST_N, RANDOM) == Match(200, 2000.0, 2.0, 2.0)
    assert match(RANDOM, WINNER) == Match(None, None, None, None)


def test_a_start_that_was_there_before_its_first_step_has_no_ratio_of_tokens():
    found = match(WINNER, RANDOM)
    assert found == Match(0, 1000.0, None, 4.0)
    assert match(curve("free", [5.0, 4.0]), RANDOM) == Match(0, 0.0, None, None)


def test_a_reference_counts_up_to_where_it_was_first_at_its_final_loss():
    overtrained = curve("overtrained", [9.0, 5.0, 4.0, 4.5, 5.0])
    assert match(FIRST_N, overtrained) == Match(200, 2000.0, 100 / 200, 1000.0 / 2000.0)
    untrained = curve("untrained", [5.0, 6.0])
    assert match(FIRST_N, untrained) == Match(200, 2000.0, None, None)


def test_at_equal_flops_every_start_has_its_last_evaluation_within_them():
    budget, found = equal_flops([RANDOM, FIRST_N, WINNER])
    assert budget == 4000.0
    assert {name: point.tokens for name, point in found.items()} == {"random": 400, "first-n": 400, "winner": 100}
    dear = curve("dear", [5.0, 4.0], search_flops=1e9)
    assert equal_flops([RANDOM, dear])[1]["dear"] is None


def test_the_table_says_what_was_spent_and_what_was_matched():
    text = "\n".join(table([WINNER, RANDOM, FIRST_N]))
    assert [line.split() for line in text.splitlines()[1:4]] == [
        ["winner", "400", "4K", "4K", "600", "400", "5.0000", "3.3000", "27.11"],
        ["random", "400", "4K", "0", "0", "0", "10.0000", "6.0000", "403.4"],
        ["first-n", "400", "4K", "0", "0", "0", "9.0000", "4.0000", "54.6"],
    ]
    assert "  winner: before its first step, 1K FLOPs (4x fewer)" in text
    assert "  winner: 200 tokens (2x fewer), 5K FLOPs (1.25x more)" in text
    assert "  random: not reached in 400 tokens" in text
    assert "at 4K FLOPs each, everything counted, the loss was:\n  winner: 4.4000 after 100 tokens" in text
    assert "inf" not in text and "nan" not in text


_SHORT = [(0, "0"), (2.1e15, "2.1P"), (999.9e12, "1P"), (4e18, "4E"), (44e12, "44T")]


@pytest.mark.parametrize(("value", "text"), _SHORT)
def test_flops_are_written_short(value, text):
    assert flops_text(value) == text
