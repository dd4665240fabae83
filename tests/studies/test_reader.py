"""Reading sweep files: scales, settings, groups, searches, and every mistake in one sentence with its path."""

import math

import pytest

from slm_ray.config.errors import UserError
from slm_ray.studies.points import expand
from slm_ray.studies.reader import parse_sweep

BASE = {"student": "smollm2-135m", "distill": "none"}


def read(content, scale=None, settings=()):
    return parse_sweep(content, "mine.yaml", scale, settings, "mine")


def values(content, **more):
    return [dict(point.values) for point in expand(read(content, **more))]


def refused(content, **more) -> str:
    with pytest.raises(UserError) as caught:
        expand(read(content, **more))
    return str(caught.value)


def one(**content):
    return {"stage": "pretrain", "base": BASE, **content}


def test_a_grid_is_a_product():
    found = values(one(grid={"optimizer": ["adamw", "lion"], "learning-rate": [0.1, 0.2]}))
    assert found == [{"optimizer": o, "learning_rate": r} for o in ("adamw", "lion") for r in (0.1, 0.2)]


def test_zipped_lists_go_together_and_points_stand_alone():
    zipped = one(zip={"tokens": ["20k", "40k"], "seed": ["0", "1"]}, points=[{"floor": 0.0}, {"floor": 0.5}])
    assert [(v["tokens"], v["seed"], v["floor"]) for v in values(zipped)] == [
        ("20k", "0", 0.0), ("20k", "0", 0.5), ("40k", "1", 0.0), ("40k", "1", 0.5),
    ]  # fmt: skip


def test_groups_are_a_union_and_equal_points_are_one():
    content = one(groups={
        "rates": {"grid": {"learning-rate": [0.1, 0.1, 0.2]}},
        "lion": {"set": {"optimizer": "lion"}, "grid": {"beta1": [0.8, 0.9]}},
    })  # fmt: skip
    points = expand(read(content))
    assert [point.group for point in points] == ["rates", "rates", "lion", "lion"]
    assert points[2].values == {"optimizer": "lion", "beta1": 0.8}


def test_every_optimiser_gets_the_same_tries_in_its_own_range():
    rates = {
        "by": "optimizer",
        "adamw": {"low": 1e-3, "high": 1e-1, "log": True},
        "lion": {"low": 1e-4, "high": 1e-2, "log": True},
    }
    content = one(grid={"optimizer": ["adamw", "lion"]}, search={"tries": 4, "fields": {"learning-rate": rates}})
    found = values(content)
    adamw, lion = ([v["learning_rate"] for v in found if v["optimizer"] == name] for name in ("adamw", "lion"))
    assert len(adamw) == len(lion) == 4
    # One in each quarter of the range, and at the same places of both ranges.
    assert sorted(int(4 * (math.log10(rate) + 3) / 2) for rate in adamw) == [0, 1, 2, 3]
    assert lion == pytest.approx([rate / 10 for rate in adamw], rel=1e-3)
    assert found == values(content)


def test_a_scale_comes_over_the_base_and_null_takes_away():
    content = one(
        grid={"optimizer": ["adamw", "lion"]},
        scales={"tiny": {}, "paper": {"base": {"tokens": "30k"}, "grid": {"optimizer": None, "seed": ["1"]}}},
    )
    assert values(content) == [{"optimizer": "adamw"}, {"optimizer": "lion"}]
    sweep = read(content, scale="paper")
    assert sweep.steps[0].options["tokens"] == "30k"
    assert values(content, scale="paper") == [{"seed": "1"}]


def test_a_setting_comes_over_everything_and_is_varied_no_more():
    content = one(grid={"optimizer": ["adamw", "lion"], "seed": ["0", "1"]})
    assert values(content, settings=["optimizer=lion"]) == [{"seed": "0"}, {"seed": "1"}]
    assert read(content, settings=["optimizer=lion"]).steps[0].options["optimizer"] == "lion"
    assert values(content, settings=["grid.seed=['5']"]) == [{"optimizer": o, "seed": "5"} for o in ("adamw", "lion")]


def test_all_mistakes_are_found_at_once_with_their_paths():
    said = refused(one(
        base=BASE | {"tokns": "3"},
        grid={"optimzer": ["lion"], "schedule": ["cosin"], "seed": []},
        plots=[{"x": "tokens"}], machine={"prise": 3},
    ))  # fmt: skip
    for sentence in (
        "6 mistakes", "base.tokns: no such option of pretrain; did you mean 'tokens'?",
        "grid.optimzer: no such option of pretrain; did you mean 'optimizer'?",
        "grid.schedule[0]: 'cosin' is not one of them: did you mean 'cosine'?",
        "grid.seed: must be a list of values with at least one in it, got []", "plots[0]: name the columns x and y",
        "machine.prise: no such option",
    ):  # fmt: skip
        assert sentence in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (one(grid={}), "grid: is empty"),
        (one(points=[]), "points: is empty"),
        (one(grid={"seed": "0"}), "grid.seed: must be a list of values"),
        (one(grid={"out": ["a"]}), "grid.out[0]: the sweep sets it; leave it out"),
        (one(zip={"seed": ["0"], "tokens": ["1k", "2k"]}), "equal length, but seed has 1, tokens has 2"),
        (one(grid={"seed": [str(n) for n in range(300)]}), "300 points, over the limit of 200: if you"),
        (one(grid={"zero": [1], "optimizer": ["muon"]}), "point 0 (zero=1, optimizer=muon): --opt"),
        (one(search={"tries": 2, "fields": {"floor": {"low": 3, "high": 1}}}), "low < high must hold, but got low 3"),
        (one(search={"tries": 2, "fields": {}}), "search.fields: is empty"),
        (one(search={"algorithm": "stratifed", "fields": {"floor": [0.1]}}), "did you mean 'stratified'?"),
        (one(scheduler="ashaa"), "did you mean 'asha'?"),
        ({"stage": "pretrian", "base": {}}, "no stage 'pretrian'; did you mean 'pretrain'?"),
        ({"base": {}}, "stage: name one (with base), or several in stages"),
        ({"stages": {"search": {}, "train": {"stage": "pretrain", "student": "${serch}"}}}, "mean '${search}'?"),
        ({"stages": {"search": {}}, "grid": {"serch.seed": [1]}}, "no such step or variable; did you mean 'search'?"),
        (one(required={"data": "text"}), "data: this sweep needs it: give --set data=… (text)"),
        (one(grids={"seed": ["0"]}), "grids: no such section; did you mean 'grid'?"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence(content, says):
    assert says in refused(content)


def test_an_unknown_scale_offers_the_nearest():
    assert "did you mean 'paper'?" in refused(one(scales={"paper": {}, "tiny": {}}), scale="papr")
    assert "--set grid" in refused(one(), settings=["grid"])


def test_a_step_that_is_left_out_cannot_be_referred_to():
    content = {
        "stages": {"search": {}, "train": {"stage": "pretrain", "student": "${search.model}", "distill": "none"}},
        "groups": {"a": {"without": ["search"]}},
    }
    assert "train refers to ${search}, which is no step before it, or one that is left out" in refused(content)
