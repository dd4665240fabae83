import itertools
import math

import pytest

from slm_ray.report.placing import Axis, Box, Label, axis_over, log_ticks, perplexity_axis, place_labels


def test_huge_values_do_not_crush_the_front():
    core = [19.3, 33.0, 300.0]
    axis = perplexity_axis(core, [90123.0, 1.2e6, 450.0], "y")
    assert axis.low < 19.3 and 450 < axis.high < 90123
    assert math.log(max(core) / min(core)) / math.log(axis.high / axis.low) > 0.4


def test_everything_is_inside_where_nothing_is_far_and_rare_outliers_are_left_out():
    axis = perplexity_axis([20.0, 100.0], [30.0, 150.0, 21.0], "y")
    assert axis.low < 20 and axis.high > 150
    assert perplexity_axis([20.0, 400.0], [100.0] * 99 + [6000.0], "y").high < 6000


@pytest.mark.parametrize("core", [[], [50.0]])
@pytest.mark.parametrize("others", [[], [50.0], [50.0, 1e9]])
def test_a_range_is_never_empty(core, others):
    axis = perplexity_axis(core, others, "y")
    assert 0 < axis.low < axis.high < 1e12


@pytest.mark.parametrize(("low", "high"), [(18.0, 500.0), (30.0, 80.0), (1.5, 2e6)])
def test_ticks_are_inside_and_enough(low, high):
    ticks = log_ticks(low, high)
    assert 4 <= len(ticks) <= 12 and all(low <= value <= high for value in ticks)


def test_an_axis_is_logarithmic_where_values_span_much():
    assert axis_over([1.0, 100.0], "x").log and axis_over([1.0, 100.0], "x").title == "x (log scale)"
    linear = axis_over([5.0, 5.0], "x", zero=True)
    assert (linear.log, linear.low) == (False, 0.0) and linear.high > 5
    assert Axis("x", 1.0, 100.0, log=True).share(10.0) == pytest.approx(0.5)
    assert Axis("x", 1.0, 100.0, log=True).at(0.5) == pytest.approx(10.0)


def test_labels_cover_no_other_label_and_stay_inside():
    bounds = Box(0, 0, 600, 400)
    labels = [Label(300 + 2 * i, 200 + i, "a label of words") for i in range(6)]
    boxes = place_labels([*labels, Label(598, 398, "x" * 18), Label(2, 2, "x" * 18)], bounds)
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(box.overlap(bounds) == pytest.approx(1) for box in boxes)


def test_labels_keep_off_points_where_there_is_room():
    points = [(110.0 + i, 108.0) for i in range(0, 100, 5)]
    (box,) = place_labels([Label(100, 100, "x" * 12)], Box(0, 0, 400, 400), points)
    assert not any(box.holds(x, y) for x, y in points)
