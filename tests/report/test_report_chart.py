import itertools
import json
import math

import pytest
from synthetic_run import finished_run, make_result, make_trials, write_run

from slm_ray.report import Model, load_run
from slm_ray.report.chart import Point, chart_data, choose_y_range, edge_rows, linear_ticks, log_ticks
from slm_ray.report.labels import Box, Label, place_labels
from slm_ray.report.payload import front_data
from slm_ray.report.plots import draw_front

PNG = b"\x89PNG"


def core_share(core, low, high):
    return math.log(max(core) / min(core)) / math.log(high / low)


def test_huge_values_do_not_crush_the_front():
    core = [19.3, 33.0, 300.0]
    low, high = choose_y_range(core, [90123.0, 1.2e6, 450.0])
    assert low < 19.3 and 450 < high < 90123
    assert core_share(core, low, high) > 0.4


def test_everything_is_inside_where_nothing_is_far():
    low, high = choose_y_range([20.0, 100.0], [30.0, 150.0, 21.0])
    assert low < 20 and high > 150


def test_rare_outliers_among_candidates_are_cut():
    _, high = choose_y_range([20.0, 400.0], [100.0] * 99 + [6000.0])
    assert high < 6000


@pytest.mark.parametrize("core", [[], [50.0]])
def test_a_range_is_never_empty(core):
    for others in ([], [50.0], [50.0, 1e9]):
        low, high = choose_y_range(core, others)
        assert 0 < low < high < 1e12


def test_baselines_above_share_no_place():
    points = [Point(10.0, y, Model(str(y))) for y in (50.0, 1e5, 1e6)] + [Point(90.0, 1e7, Model("far"))]
    rows = {point.model.name: point.edge_row for point in edge_rows(points, 100.0, 100.0)}
    assert rows == {"50.0": None, "1000000.0": 0, "100000.0": 1, "far": 0}


@pytest.mark.parametrize(("low", "high"), [(18.0, 500.0), (30.0, 34.0), (1.5, 2e6), (99.0, 101.0)])
def test_ticks_are_inside_and_enough(low, high):
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 12
    assert all(low <= value <= high for value, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)


def test_linear_ticks_are_round():
    assert [label for _, label in linear_ticks(51e6, 139e6, 5)] == ["60M", "80M", "100M", "120M"]
    assert linear_ticks(5, 5) == ((5, "5"),)


def test_the_chart_of_a_run(tmp_path):
    run = load_run(finished_run(tmp_path))
    chart = chart_data(run)
    assert chart.quantity == "params" and chart.is_held_out
    assert chart.budget == (53806003, 94160505)
    assert {point.model.name: point.edge_row for point in chart.baselines} == {
        "importance": None,
        "random": 0,
        "first-n": 1,
    }
    assert not {p.model.trial for p in chart.candidates} & {p.model.trial for p in chart.front}
    assert len(chart.candidates) + chart.num_above == 160 - len(chart.front)
    assert all(chart.y.low <= point.y <= chart.y.high for point in (*chart.candidates, *chart.front, chart.teacher))


def test_what_is_exported_is_in_the_picture_below_what_was_cut_out(tmp_path):
    folder = finished_run(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    for entry in result["front"]:
        kept = entry["winner"] == 0
        entry["reconstruction"] = {"kept": kept, "after": {"held_out_perplexity": 20.5, "held_out_stderr": 0.7}}
    (folder / "result.json").write_text(json.dumps(result))
    run = load_run(folder)
    chart = chart_data(run)
    assert [(point.model, point.x, point.y) for point in chart.fitted] == [(run.best, run.best.params, 20.5)]
    assert chart.y.low < 20.5 and draw_front(run).startswith(PNG)
    (shown,) = [point for point in front_data(run)["front"] if "fitted" in point]
    assert (shown["winner"], shown["fitted"], shown["fittedLabel"]) == (0, 20.5, "20.5")
    assert any(line.startswith("with fitted weights 20.5 ± 0.7, ") for line in shown["facts"])


def test_another_objective_is_the_horizontal_axis(tmp_path):
    chart = chart_data(load_run(finished_run(tmp_path, objectives=["kl", "kv_bytes"])))
    assert chart.quantity == "kv_bytes" and chart.budget is None
    assert chart.teacher.x == 23040


def test_labels_cover_no_other_label_and_stay_inside():
    bounds = Box(0, 0, 600, 400)
    labels = [Label(300 + 2 * i, 200 + i, 120, 16) for i in range(6)] + [Label(598, 398, 120, 16), Label(2, 2, 120, 16)]
    boxes = place_labels(labels, bounds)
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(box.overlap(bounds) == pytest.approx(1) for box in boxes)


def test_labels_keep_off_points_where_there_is_room():
    points = [(110.0 + i, 108.0) for i in range(0, 100, 5)]
    (box,) = place_labels([Label(100, 100, 80, 16)], Box(0, 0, 400, 400), points=points)
    assert not any(box.holds(x, y) for x, y in points)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"front": []},
        {"baselines": []},
        {"teacher": None},
        {"budget": None},
        {"front": [], "teacher": {}, "baselines": []},
    ],
)
def test_the_picture_is_drawn_whatever_is_missing(tmp_path, changes):
    trials = make_trials(30)
    assert draw_front(load_run(write_run(tmp_path, trials, make_result(trials, **changes)))).startswith(PNG)


@pytest.mark.parametrize("count", [0, 1])
def test_the_picture_of_hardly_any_trials(tmp_path, count):
    trials = make_trials(count)
    assert draw_front(load_run(write_run(tmp_path / "a", trials, None))).startswith(PNG)
    assert draw_front(load_run(write_run(tmp_path / "b", trials, make_result(trials)))).startswith(PNG)


def test_a_dollar_sign_in_a_name_starts_no_formula(tmp_path):
    trials = make_trials(10)
    result = make_result(trials)
    result["teacher"]["name"] = "a$b_{$c\\frac$"
    result["baselines"][0]["name"] = "$\\bad{$"
    assert draw_front(load_run(write_run(tmp_path, trials, result))).startswith(PNG)


def test_the_picture_has_its_size(tmp_path):
    data = draw_front(load_run(finished_run(tmp_path)))
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (1200, 750)
