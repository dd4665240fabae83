"""Blinded rating: the page, what raters cannot find out, and the table against definitions and spoilt files."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from slm_ray.evaluate.intervals import wilson_interval
from slm_ray.evaluate.rating.command import main
from slm_ray.evaluate.rating.pairs import rating_page
from slm_ray.evaluate.rating.preferences import Rating, krippendorff_alpha, log_strengths, preferences
from slm_ray.records.base import read_record
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.records.rating import RatingKey
from slm_ray.runtime.commands import run_command
from tests.evaluate.rating_run import PROMPTS, save_ratings, write_model, write_result, write_run
from tests.text_references import naive_bradley_terry, naive_krippendorff

MODELS = ["a", "b", "c"]


def rate(*arguments):
    return run_command(main, [str(argument) for argument in arguments])


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])


def key_of(folder, name="rating_key.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


# The page.


def test_every_prompt_of_every_pair_is_shown_once_and_names_nobody(run, capsys):
    assert rate("page", run) == 0
    assert "left out: 3 times two models wrote the same text" in capsys.readouterr().out
    data, key, page = data_of(run / "rating.html"), key_of(run), (run / "rating.html").read_text()
    assert data["page"] == key["page"] and key["models"] == ["winner", "teacher", "first-n"]
    assert len(data["items"]) == len(key["items"]) == 3 * 5
    seen = Counter()
    for item, entry in zip(data["items"], key["items"], strict=True):
        assert item["item"] == entry["item"] and item["prompt"] == PROMPTS[entry["prompt"]]
        for side in ("left", "right"):
            assert item[side] == f" {entry['prompt']} {sum(map(ord, entry[side + '_model']))}"
        seen[entry["prompt"], frozenset((entry["left_model"], entry["right_model"]))] += 1
    assert set(seen.values()) == {1}
    assert not [name for name in ("winner", "teacher", "first-n", "text-only", str(run)) if name in page]
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert set(data["items"][0]) == {"item", "prompt", "left", "right"}


def test_sides_are_balanced_and_fixed_by_the_seed(run, tmp_path):
    pages = []
    for number, seed in enumerate((3, 3, 4)):
        assert rate("page", run, "--seed", seed, "--out", tmp_path / f"page{number}.html") == 0
        pages.append(key_of(tmp_path, f"page{number}_rating_key.json"))
    assert pages[0] == pages[1] and pages[0]["page"] != pages[2]["page"]
    left = Counter((entry["left_model"], entry["right_model"]) for entry in pages[0]["items"])
    assert all(2 <= left[one, other] <= 3 for one, other in left) and len(left) == 6


def test_fewer_comparisons_are_shared_among_the_pairs_of_the_models_asked_for(run, tmp_path):
    assert rate("page", run, "--pairs", 6, "--out", tmp_path / "few.html") == 0
    items = key_of(tmp_path, "few_rating_key.json")["items"]
    counts = Counter(frozenset((entry["left_model"], entry["right_model"])) for entry in items)
    assert sorted(counts.values()) == [2, 2, 2]
    assert rate("page", run, "--models", "first-n, winner") == 0
    assert key_of(run)["models"] == ["first-n", "winner"] and len(key_of(run)["items"]) == 5


def test_only_the_page_s_own_script_and_style_run_whatever_a_model_wrote():
    text = "</script><script>alert(1)</script>{{ style }}<!--"
    page = rating_page({"page": "x", "items": [{"item": "1", "prompt": text, "left": text, "right": "\u2028"}]})
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    for tag in ("style", "script"):
        [body] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.S)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    data = re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    assert json.loads(data)["items"][0]["left"] == text


def test_another_page_s_key_is_not_written_over(run, capsys):
    assert rate("page", run) == 0
    before = key_of(run)
    assert rate("page", run) == 0  # the same page again
    assert rate("page", run, "--seed", 9) == 2
    assert "key of another page" in capsys.readouterr().err and key_of(run) == before


def _no_record(run):
    for file in (run / "models" / "winner-0").glob("*.json"):
        file.unlink()


def _other_prompts(run):
    late = write_model(run, "late", dict.fromkeys(PROMPTS, "x"), {key: text + "!" for key, text in PROMPTS.items()})
    write_result(run, *read_record(run, EvaluationResult).models, late)


def _all_alike(run):
    write_result(run, *(write_model(run, name, dict.fromkeys(PROMPTS, "x")) for name in ("a", "b")))


@pytest.mark.parametrize(("arguments", "spoil", "said"), [
    (("page", "--models", "winer,teacher"), None, "unknown model 'winer': did you mean 'winner'"),
    (("page", "--models", "text-only,teacher"), None, "text-only generated nothing"),
    (("page", "--models", "teacher"), None, "only teacher has texts"),
    (("page", "--pairs", "0"), None, "--pairs 0 must be at least 1"),
    (("page", "--out", "page.txt"), None, "must be the name of an .html file"),
    (("page", "--paris", "3"), None, "unknown argument '--paris': did you mean '--pairs'"),
    (("page",), _no_record, "no record of what winner generated"),
    (("page",), _other_prompts, "winner and late were given different prompts"),
    (("page",), _all_alike, "nothing to compare"),
    (("tabel",), None, "invalid choice: 'tabel'"),
])  # fmt: skip
def test_what_cannot_be_made_gets_one_sentence(run, capsys, arguments, spoil, said):
    if spoil:
        spoil(run)
    assert rate(arguments[0], run, *arguments[1:]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (run / "rating_key.json").exists()


def test_raters_pages_need_no_torch(run):
    program = (
        "import sys\n"
        "from slm_ray.cli import dispatch\n"
        f"assert dispatch(['rate', 'page', {str(run)!r}]) == 0\n"
        "print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.endswith("[]\n")


# The table.


def table(ratings, models=MODELS):
    return preferences(ratings, RatingKey(page="x", run="r", seed=0, models=tuple(models), items=()))


def make(prompt, left, right, choice, rater="r"):
    item = f"{prompt}/{'/'.join(sorted((left, right)))}"
    return Rating(rater=rater, item=item, prompt=str(prompt), left=left, right=right, choice=choice)


def random_ratings(seed, raters=2, prompts=12):
    rng, found = random.Random(seed), []
    for rater in range(raters):
        for prompt in range(prompts):
            for pair in ("ab", "ac", "bc"):
                left, right = rng.sample(pair, 2)
                choice = rng.choices(("left", "right", "tie", "both_bad"), (4 - ord(left) % 3, 2, 1, 1))[0]
                found.append(make(prompt, left, right, choice, f"r{rater}"))
    return found


def test_strengths_are_the_likeliest_ones():
    ratings, results = random_ratings(1), []
    for rating in ratings:
        score = rating.score(rating.left)
        results += [((rating.left, rating.right), score), ((rating.right, rating.left), 1 - score)]
    expected = naive_bradley_terry(MODELS, results, extra_ties=1)
    for row in table(ratings).strengths.models:
        assert row.log_strength == pytest.approx(expected[row.model], abs=1e-4)
        assert row.interval[0] < row.log_strength < row.interval[1]
    first, second = log_strengths(np.array([[0.0, 6.0], [2.0, 0.0]]), np.zeros((2, 2)))  # of two they are the odds
    assert first - second == pytest.approx(math.log(3)) and first + second == pytest.approx(0)
    assert np.isfinite(log_strengths(np.array([[0.0, 6.0], [0.0, 0.0]]), 1 - np.eye(2))).all()


def test_models_that_never_met_even_in_steps_have_no_strengths():
    found = table([make(1, "a", "b", "left")]).strengths
    assert found.models is None and "never compared" in found.note
    assert table([make(1, "a", "b", "left"), make(2, "b", "c", "left")]).strengths.models


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_that_of_its_definition(seed):
    rng = random.Random(seed)
    units = [rng.choices("lrt", (5, 2, 1), k=rng.choice((1, 2, 3))) for _ in range(20)]
    assert krippendorff_alpha(units) == pytest.approx(naive_krippendorff(units))
    assert krippendorff_alpha([["l", "l"], ["r", "r"]]) == 1
    assert krippendorff_alpha([["l", "l"], ["l", "l"]]) is None and krippendorff_alpha([["l"], []]) is None


def test_one_rater_s_counts_and_win_rate():
    choices = ["left"] * 6 + ["right"] * 2 + ["tie", "both_bad"]
    ratings = [make(number, "a", "b", choice) for number, choice in enumerate(choices)]
    ratings += [make(99, "b", "a", "left")]  # b wins
    found = table(ratings, "ab")
    [row] = found.pairs
    assert (row.wins, row.ties, row.losses, row.both_bad) == (6, 2, 3, 1)
    assert row.win_rate == pytest.approx(7 / 11) and row.verdict == "within the noise"
    assert row.interval == pytest.approx(wilson_interval(7, 11)) and found.strengths is None


def test_raters_who_say_the_same_are_not_more_prompts():
    """Ten raters that agree are as sure as one: prompts are what is drawn."""
    choices = ["left"] * 9 + ["right"] * 5
    widths = []
    for raters in (1, 10):
        ratings = [make(n, "a", "b", choice, f"r{r}") for n, choice in enumerate(choices) for r in range(raters)]
        [row] = table(ratings, "ab").pairs
        widths.append(row.interval[1] - row.interval[0])
    assert widths[1] > 0.8 * widths[0]
    [row] = table([make(n, "a", "b", "left", f"r{r}") for n in range(12) for r in range(3)], "ab").pairs
    assert row.win_rate == 1 and row.interval == pytest.approx(wilson_interval(12, 12)) and row.verdict == "preferred"


@pytest.fixture
def rated(tmp_path, run):
    """A run with a page, and two raters' files who prefer whoever has the shorter name."""
    assert rate("page", run) == 0
    choices = {}
    for entry in key_of(run)["items"]:
        shorter = len(entry["left_model"]) < len(entry["right_model"])
        choices[entry["item"]] = "left" if shorter else "right"
    page = key_of(run)["page"]
    return run, [save_ratings(tmp_path / f"{name}.json", page, name, choices) for name in ("Asha", "Ben")]


def test_the_table_is_written_as_text_and_json(rated, capsys):
    run, files = rated
    assert rate("table", run, *files) == 0
    text, found = (run / "preferences.txt").read_text(), key_of(run, "preferences.json")
    assert text.strip() in capsys.readouterr().out and "agreement Krippendorff's alpha 1.00" in text
    assert found["ratings"] == 30 and found["agreement"]["rated_by_several"] == 15
    assert [(row["wins"], row["losses"]) for row in found["pairs"][:2]] == [(10, 0), (10, 0)]
    assert found["strengths"]["models"][0]["model"] == "winner" and "Bradley-Terry strengths" in text
    few = save_ratings(files[0], key_of(run)["page"], "Asha", {"1": "both_bad"})
    assert rate("table", run, few, "--out", run / "tables") == 0
    text = (run / "tables" / "preferences.txt").read_text()
    assert "agreement is not known" in text and "1 of the ties: both bad" in text


def _edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _first_rating(file, **changes):
    saved = json.loads(file.read_text())
    saved["ratings"][0] |= changes
    file.write_text(json.dumps(saved))


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda files: files[0].write_text(files[0].read_text()[:90]), "cut short or edited"),
    (lambda files: _edit(files[0], page="0000"), "rates page 0000, but the key is of page"),
    (lambda files: _edit(files[0], rater=" "), "does not say who rated"),
    (lambda files: _first_rating(files[0], item="77"), "rates comparison 77, which its page does not have"),
    (lambda files: _first_rating(files[0], choice="up"), "is damaged (ratings.0.choice"),
    (lambda files: _first_rating(files[0], item="2"), "Asha rated comparison 2 in"),
    (lambda files: _edit(files[1], rater="Asha"), "Asha rated comparison 1 in"),
    (lambda files: [_edit(file, ratings=[]) for file in files], "not one rating"),
])  # fmt: skip
def test_spoilt_ratings_get_one_sentence(rated, capsys, spoil, said):
    run, files = rated
    spoil(files)
    assert rate("table", run, *files) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (run / "preferences.json").exists()
