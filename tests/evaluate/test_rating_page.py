"""The blinded page: what is on it, who is left, and what raters cannot find out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from slm_ray.evaluate.rating.command import main
from slm_ray.evaluate.rating.pairs import rating_page
from slm_ray.records.base import read_record
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.runtime.commands import run_command
from tests.evaluate.rating_run import PROMPTS, write_model, write_result, write_run


def rate(*arguments):
    return run_command(main, [str(argument) for argument in arguments])


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_every_prompt_of_every_pair_is_shown_once_and_the_key_says_who_wrote_what(run):
    assert rate("page", run) == 0
    data, key = data_of(run / "rating.html"), json.loads((run / "rating_key.json").read_text())
    assert data["page"] == key["page"] and key["models"] == ["winner", "teacher", "first-n"]
    assert len(data["items"]) == len(key["items"]) == 3 * 5
    assert len(key["same"]) == 3 and {entry["prompt"] for entry in key["same"]} == {"p0"}
    seen = Counter()
    for item, entry in zip(data["items"], key["items"], strict=True):
        assert item["item"] == entry["item"] and item["prompt"] == PROMPTS[entry["prompt"]]
        for side in ("left", "right"):
            assert item[side] == f" {entry['prompt']} {sum(map(ord, entry[side + '_model']))}"
        seen[entry["prompt"], frozenset((entry["left_model"], entry["right_model"]))] += 1
    assert set(seen.values()) == {1}


def test_no_model_and_no_other_address_is_named_in_the_page(run):
    assert rate("page", run) == 0
    page = (run / "rating.html").read_text()
    assert not [name for name in ("winner", "teacher", "first-n", "text-only", str(run)) if name in page]
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert set(data_of(run / "rating.html")["items"][0]) == {"item", "prompt", "left", "right"}


def test_sides_are_balanced_and_fixed_by_the_seed(run, tmp_path):
    pages = []
    for number, seed in enumerate((3, 3, 4)):
        out = tmp_path / f"page{number}.html"
        assert rate("page", run, "--seed", seed, "--out", out) == 0
        pages.append(json.loads((tmp_path / f"page{number}_rating_key.json").read_text()))
    assert pages[0] == pages[1] and pages[0]["page"] != pages[2]["page"]
    left = Counter((entry["left_model"], entry["right_model"]) for entry in pages[0]["items"])
    assert all(2 <= left[one, other] <= 3 for one, other in left) and len(left) == 6


def test_fewer_comparisons_are_shared_among_the_pairs(run, tmp_path):
    assert rate("page", run, "--pairs", 6, "--out", tmp_path / "few.html") == 0
    key = json.loads((tmp_path / "few_rating_key.json").read_text())
    counts = Counter(frozenset((entry["left_model"], entry["right_model"])) for entry in key["items"])
    assert sorted(counts.values()) == [2, 2, 2]


def test_only_the_models_asked_for_are_compared(run):
    assert rate("page", run, "--models", "first-n, winner") == 0
    key = json.loads((run / "rating_key.json").read_text())
    assert key["models"] == ["first-n", "winner"] and len(key["items"]) == 5


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
    before = (run / "rating_key.json").read_text()
    assert rate("page", run) == 0  # the same page again
    assert rate("page", run, "--seed", 9) == 2
    assert "key of another page" in capsys.readouterr().err and (run / "rating_key.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--models", "winer,teacher"), "unknown model 'winer': did you mean 'winner'"),
        (("--models", "text-only,teacher"), "text-only generated nothing"),
        (("--models", "teacher"), "only teacher has texts"),
        (("--pairs", "0"), "--pairs 0 must be at least 1"),
        (("--pairs", "many"), "invalid int value"),
        (("--out", "page.txt"), "must be the name of an .html file"),
        (("--paris", "3"), "unknown argument '--paris': did you mean '--pairs'"),
    ],
)
def test_what_cannot_be_made_gets_one_sentence(run, capsys, arguments, said):
    assert rate("page", run, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (run / "rating_key.json").exists()


def _no_result(run):
    (run / "evaluate.json").unlink()


def _cut_short(run):
    (run / "evaluate.json").write_text('{"models": [')


def _not_an_evaluation(run):
    (run / "evaluate.json").write_text('{"rows": []}')


def _no_record(run):
    for file in (run / "models" / "winner-0").glob("*.json"):
        file.unlink()


def _half_a_record(run):
    (run / "models" / "winner-0" / "generation-11111111.json").write_text('{"settings": {"se')


def _other_prompts(run):
    late = write_model(run, "late", dict.fromkeys(PROMPTS, "x"), {key: text + "!" for key, text in PROMPTS.items()})
    write_result(run, *read_record(run, EvaluationResult).models, late)


def _all_alike(run):
    write_result(run, *(write_model(run, name, dict.fromkeys(PROMPTS, "x")) for name in ("a", "b")))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_result, "evaluate.json does not exist"),
        (_cut_short, "cut short or edited"),
        (_not_an_evaluation, "schema version 1"),
        (_no_record, "no record of what winner generated"),
        (_half_a_record, "cut short or edited"),
        (_other_prompts, "winner and late were given different prompts"),
        (_all_alike, "nothing to compare"),
    ],
)
def test_a_run_that_is_spoilt_gets_one_sentence(run, capsys, spoil, said):
    spoil(run)
    assert rate("page", run) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_it_can_make_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        rate("--help")
    assert ended.value.code == 0 and "page" in capsys.readouterr().out
    assert rate() == 2 and "page RUN, or table RUN RATINGS" in capsys.readouterr().err
    assert rate("tabel") == 2 and "did you mean 'table'" in capsys.readouterr().err


def test_raters_pages_need_no_torch(run):
    program = (
        "import sys\n"
        "from slm_ray.cli import dispatch\n"
        f"assert dispatch(['rate', 'page', {str(run)!r}]) == 0\n"
        "print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.endswith("[]\n")
