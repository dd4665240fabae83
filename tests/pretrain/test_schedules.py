"""Learning rates and loss weights over a run, in closed form."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from slm_ray.pretrain.schedules import Kind, Schedule, ScheduleConfig, WeightSchedule
from tests.references import schedule_factor

SCHEDULES = get_args(Kind)


def test_a_long_warmup_shortens_the_decay():
    schedule = Schedule("wsd", 90, 100, floor_ratio=0.0, decay_fraction=0.5)
    assert schedule.factor(89) == schedule.factor(90) == 1.0
    assert schedule.factor(91) == pytest.approx(1 - math.sqrt(0.1))


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (3, 3), (0, 2), (2, 3)])
def test_the_shortest_runs_train_at_every_step(kind, warmup, total):
    schedule = Schedule(kind, warmup, total, floor_ratio=0.0)
    factors = [schedule.factor(step) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors) and 1.0 in factors


def test_a_share_of_the_steps_is_rounded_up():
    schedule = Schedule.of(ScheduleConfig(schedule="wsd", warmup=0.1, floor=0.2), 25)
    assert schedule == Schedule("wsd", 3, 25, 0.2)


def test_the_weight_stays_falls_in_a_line_or_follows_a_wsd_learning_rate():
    schedule = Schedule("wsd", 10, 100, floor_ratio=0.1, decay_fraction=0.25)
    assert {WeightSchedule("constant", 0.7).weight(step, schedule) for step in range(100)} == {0.7}
    linear = WeightSchedule("linear", 0.8)
    assert [linear.weight(step, schedule) for step in (0, 25, 50, 100, 101)] == pytest.approx([0.8, 0.6, 0.4, 0, 0])
    wsd = WeightSchedule("wsd", 0.5)
    assert [wsd.weight(step, schedule) for step in (0, 9, 74, 84, 91, 100)] == pytest.approx(
        [0.05, 0.5, 0.5, 0.2, 0.1, 0.0]
    )


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_step_is_what_the_definition_says(kind):
    schedule = Schedule(kind, 13, 200, floor_ratio=0.05, decay_fraction=0.3)
    for step in range(200):
        assert schedule.factor(step) == pytest.approx(schedule_factor(kind, step, 13, 200, 0.05, 0.3))
