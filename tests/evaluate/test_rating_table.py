"""From raters' files to the table: against definitions, by hand, and with files that are spoilt."""

from __future__ import annotations

import csv
import json
import math
import random

import numpy as np
import pytest

from slm_ray.evaluate.intervals import wilson_interval
from slm_ray.evaluate.rating.command import main
from slm_ray.evaluate.rating.preferences import BOOTSTRAP, WILSON, Rating
from slm_ray.evaluate.rating.preferences import preferences as typed_preferences
from slm_ray.evaluate.rating.statistics import cohen_kappa, is_connected, krippendorff_alpha, log_strengths
from slm_ray.records.rating import RatingKey
from slm_ray.runtime.commands import run_command
from tests.evaluate.rating_run import save_ratings, write_run
from tests.text_references import naive_bradley_terry, naive_kappa, naive_krippendorff

MODELS = ["a", "b", "c"]


def key_of(models=MODELS):
    return RatingKey(page="x", run="r", seed=0, models=tuple(models), items=(), same=())


def preferences(ratings, key):
    return typed_preferences(ratings, key).to_json()


def make(prompt, left, right, choice, rater="r"):
    item = f"{prompt}/{'/'.join(sorted((left, right)))}"
    return Rating(rater=rater, item=item, prompt=str(prompt), left=left, right=right, choice=choice)


def random_ratings(seed, raters=2, prompts=12, models=MODELS):
    rng = random.Random(seed)
    found = []
    for rater in range(raters):
        for prompt in range(prompts):
            for place, one in enumerate(models):
                for other in models[place + 1 :]:
                    left, right = rng.sample((one, other), 2)
                    choice = rng.choices(("left", "right", "tie", "both_bad"), (4 - ord(left) % 3, 2, 1, 1))[0]
                    found.append(make(prompt, left, right, choice, f"r{rater}"))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_strengths_are_the_likeliest_ones(seed):
    ratings = random_ratings(seed)
    results = []
    for rating in ratings:
        score = rating.score(rating.left)
        results += [((rating.left, rating.right), score), ((rating.right, rating.left), 1 - score)]
    expected = naive_bradley_terry(MODELS, results, extra_ties=1)
    found = {row["model"]: row for row in preferences(ratings, key_of())["strengths"]["models"]}
    for model, row in found.items():
        assert row["log_strength"] == pytest.approx(expected[model], abs=1e-4)
        assert row["interval"][0] < row["log_strength"] < row["interval"][1]


def test_of_two_models_the_strengths_are_their_odds():
    wins = np.array([[0.0, 6.0], [2.0, 0.0]])
    first, second = log_strengths(wins, np.zeros((2, 2)))
    assert first - second == pytest.approx(math.log(3)) and first + second == pytest.approx(0)
    assert np.isfinite(log_strengths(np.array([[0.0, 6.0], [0.0, 0.0]]), 1 - np.eye(2))).all()


def test_models_that_never_met_even_in_steps_have_no_strengths():
    assert is_connected(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]))
    assert not is_connected(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    found = preferences([make(1, "a", "b", "left")], key_of())["strengths"]
    assert found["models"] is None and "never compared" in found["note"]


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_that_of_its_definition(seed):
    rng = random.Random(seed)
    units = [rng.choices("lrt", (5, 2, 1), k=rng.choice((1, 2, 3))) for _ in range(20)]
    assert krippendorff_alpha(units) == pytest.approx(naive_krippendorff(units))
    first, second = (rng.choices("lrt", (5, 2, 1), k=20) for _ in range(2))
    found = cohen_kappa(dict(enumerate(first)), dict(enumerate(second)) | {99: "l"})
    assert found == pytest.approx(naive_kappa(first, second))


def test_agreement_at_its_ends_and_where_it_is_not_defined():
    assert krippendorff_alpha([["l", "l"], ["r", "r"]]) == 1
    assert krippendorff_alpha([["l", "r"], ["r", "l"]]) < 0
    assert krippendorff_alpha([["l", "l"], ["l", "l"]]) is None
    assert krippendorff_alpha([["l"], []]) is None
    assert cohen_kappa({"1": "l"}, {"1": "l"}) is None and cohen_kappa({"1": "l"}, {"2": "l"}) is None


def test_wilson_intervals_solve_their_equation():
    for successes, number in ((0, 5), (3.5, 10), (10, 10), (40, 100)):
        for end in wilson_interval(successes, number):
            if 1e-9 < end < 1 - 1e-9:
                distance = abs(successes / number - end) / math.sqrt(end * (1 - end) / number)
                assert distance == pytest.approx(1.959963984540054)
    assert wilson_interval(0, 5)[0] == pytest.approx(0) and wilson_interval(10, 10)[1] == pytest.approx(1)


def test_one_rater_s_counts_and_win_rate():
    choices = ["left"] * 6 + ["right"] * 2 + ["tie", "both_bad"]
    ratings = [make(number, "a", "b", choice) for number, choice in enumerate(choices)]
    ratings += [make(99, "b", "a", "left")]  # b wins
    [row] = preferences(ratings, key_of("ab"))["pairs"]
    assert (row["wins"], row["ties"], row["losses"], row["both_bad"]) == (6, 2, 3, 1)
    assert row["win_rate"] == pytest.approx(7 / 11) and row["interval_by"] == WILSON
    assert row["interval"] == pytest.approx(wilson_interval(7, 11)) and row["verdict"] == "within the noise"
    assert preferences(ratings, key_of("ab"))["strengths"] is None


def test_raters_who_say_the_same_are_not_more_prompts():
    """Ten raters that agree are as sure as one: prompts are what is drawn."""
    choices = ["left"] * 9 + ["right"] * 5
    widths = []
    for raters in (1, 10):
        ratings = [make(n, "a", "b", choice, f"r{r}") for n, choice in enumerate(choices) for r in range(raters)]
        [row] = preferences(ratings, key_of("ab"))["pairs"]
        assert row["interval_by"] == (WILSON if raters == 1 else BOOTSTRAP) and row["raters"] == raters
        widths.append(row["interval"][1] - row["interval"][0])
    assert widths[1] > 0.8 * widths[0]


def test_when_all_agree_on_everything_it_is_still_not_certain():
    ratings = [make(n, "a", "b", "left", f"r{r}") for n in range(12) for r in range(3)]
    [row] = preferences(ratings, key_of("ab"))["pairs"]
    assert row["win_rate"] == 1 and row["interval"] == pytest.approx(wilson_interval(12, 12))
    assert row["verdict"] == "preferred"


def rate(*arguments):
    return run_command(main, [str(argument) for argument in arguments])


@pytest.fixture
def rated(tmp_path):
    """A run with a page, and two raters' files who prefer whoever has the shorter name."""
    run = write_run(tmp_path / "run")
    assert rate("page", run) == 0
    key = json.loads((run / "rating_key.json").read_text())
    choices = {}
    for entry in key["items"]:
        shorter = len(entry["left_model"]) < len(entry["right_model"])
        choices[entry["item"]] = "left" if shorter else "right"
    files = [save_ratings(tmp_path / f"{name}.json", key["page"], name, choices) for name in ("Asha", "Ben")]
    return run, key, files


def test_the_table_is_written_as_text_csv_and_json(rated, capsys):
    run, _, files = rated
    assert rate("table", run, *files) == 0
    printed = capsys.readouterr().out
    text, table = (run / "preferences.txt").read_text(), json.loads((run / "preferences.json").read_text())
    assert text.strip() in printed and "Krippendorff's alpha 1.00, Cohen's kappa 1.00" in text
    assert table["ratings"] == 30 and table["agreement"]["rated_by_several"] == 15
    rows = list(csv.DictReader((run / "preferences.csv").open()))
    wins = {(row["model"], row["other"]): (int(row["wins"]), int(row["losses"])) for row in rows}
    assert wins == {("winner", "teacher"): (10, 0), ("winner", "first-n"): (10, 0), ("teacher", "first-n"): (0, 0)} | {
        ("teacher", "first-n"): wins["teacher", "first-n"]
    }
    assert [row["same_text"] for row in rows] == ["1", "1", "1"]
    assert table["strengths"]["models"][0]["model"] == "winner"
    assert "not shown and not counted: 3 times" in text


def _edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _first_rating(file, **changes):
    saved = json.loads(file.read_text())
    saved["ratings"][0] |= changes
    file.write_text(json.dumps(saved))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files[0].unlink(), "Asha.json does not exist"),
        (lambda files: files[0].write_text(files[0].read_text()[:90]), "cut short or edited"),
        (lambda files: files[0].write_text("[]"), "is damaged"),
        (lambda files: _edit(files[0], ratings={}), "is damaged"),
        (lambda files: _edit(files[0], page="0000"), "rates page 0000, but the key is of page"),
        (lambda files: _edit(files[0], rater=" "), "does not say who rated"),
        (lambda files: _first_rating(files[0], item="77"), "rates comparison 77, which its page does not have"),
        (lambda files: _first_rating(files[0], item=["1"]), "is damaged (ratings.0.item"),
        (lambda files: _first_rating(files[0], choice="up"), "is damaged (ratings.0.choice"),
        (lambda files: _first_rating(files[0], item="2"), "rates comparison 2 twice"),
        (lambda files: _edit(files[1], rater="Asha"), "Asha rated comparison 1 in"),
        (lambda files: [_edit(file, ratings=[]) for file in files], "not one rating"),
    ],
)
def test_spoilt_ratings_get_one_sentence(rated, capsys, spoil, said):
    run, _, files = rated
    spoil(files)
    assert rate("table", run, *files) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (run / "preferences.json").exists()


def test_a_key_that_is_none_or_another_s(rated, tmp_path, capsys):
    run, _, files = rated
    other = tmp_path / "other.json"
    other.write_text('{"format": "something"}')
    assert rate("table", run, *files, "--key", other) == 2
    assert "schema version 1" in capsys.readouterr().err
    assert rate("page", run, "--seed", 5, "--out", tmp_path / "second.html") == 0
    assert rate("table", run, *files, "--key", tmp_path / "second_rating_key.json") == 2
    assert "give the other page's key" in capsys.readouterr().err
    assert rate("table", run, *files, "--out", tmp_path / "tables") == 0
    assert (tmp_path / "tables" / "preferences.csv").exists()


def test_one_rater_s_table_says_that_agreement_is_not_known(rated, capsys):
    run, key, files = rated
    few = save_ratings(files[0], key["page"], "Asha", {"1": "both_bad"})
    assert rate("table", run, few) == 0
    text = capsys.readouterr().out
    assert "agreement is not known" in text and "1 of the ties: both bad" in text and "not rated" in text
