import base64
import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
from made_evaluation import evaluation_run, unfinished_evaluation
from synthetic_proxies import proxies_run
from synthetic_run import finished_run, make_trials, write_run
from synthetic_training import evaluations, lines, training_run
from test_pipeline_report import pipeline_folder
from test_report_page import EVIL, outline, page_json

from slm_ray.report.command import main
from slm_ray.report.payload import thinned
from slm_ray.report.runs import kind_of, load_any
from slm_ray.report.set_data import best_matching_table, held_out_note, merge_training, run_names
from slm_ray.report.set_page import set_report
from slm_ray.report.training import load_training
from slm_ray.runtime.commands import run_command


def build(folders, out):
    assert run_command(main, [*map(str, folders), "--out", str(out)]) == 0
    return (out / "report.html").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page of every kind of run, its folder and what was printed."""
    base = tmp_path_factory.mktemp("set")
    folders = [
        finished_run(base / "a", 40), write_run(base / "b", make_trials(12), None), training_run(base / "t"),
        pipeline_folder(base / "p"), evaluation_run(base / "e"), unfinished_evaluation(base / "f"),
        proxies_run(base / "x"),
    ]  # fmt: skip
    before = {folder: sorted(folder.rglob("*")) for folder in folders}
    page = build(folders, base / "all")
    assert {folder: sorted(folder.rglob("*")) for folder in folders} == before, "the runs are left as they are"
    return page, base / "all"


def test_one_page_has_all_runs_and_what_they_share(whole):
    page, out = whole
    tags = outline(page)
    assert tags.links == ["#all", *(f"#run{n}" for n in range(7))]
    assert {attrs["id"] for _, attrs in tags.tags if "id" in attrs} >= {"all", *(f"run{n}" for n in range(7))}
    assert "7 runs: 2 searches, 1 pretraining, 1 pipeline, 2 evaluations, 1 proxies" in page
    data = page_json(page)
    assert {"fronts", "all-training", "run0-front", "run0-front-shape", "run2-training", "run3-training", "run3-tasks",
            "run4-scatter", "run6-proxies"} <= set(data)  # fmt: skip
    assert [curve["name"] for curve in data["fronts"]["curves"]] == ["a", "b", "p"]
    assert len(data["all-training"]["curves"]) == 6
    for title in ("Overview", "The fronts of all searches", "Training curves of all runs", "The evaluations",
                  "Cost and energy"):  # fmt: skip
        assert f"<h3>{title}</h3>" in page
    text = (out / "report.md").read_text()
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert len(list(out.glob("*.png"))) == 7 and "(fronts.png)" in text


def test_only_the_pages_own_script_may_run(whole):
    page, _ = whole
    allowed = re.search(r"script-src 'sha256-([^']+)'", page).group(1)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts] == [allowed]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_scripts_are_valid_javascript(whole, tmp_path):
    (tmp_path / "page.js").write_text(re.search(r"<script>(.*?)</script>", whole[0], re.DOTALL).group(1))
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True)


def test_what_is_missing_in_a_run_is_said_at_the_top_with_its_name(whole):
    page, _ = whole
    notes = re.findall(r'<p class="note" role="note">(.*?)</p>', page)
    assert any(note.startswith("b: This run has not finished") for note in notes)
    assert any(note.startswith("f: This evaluation has not finished") for note in notes)


def test_the_search_before_a_training_is_counted_once(tmp_path):
    runs = [load_any(training_run(tmp_path / name)) for name in ("t", "u")]
    report = set_report(runs, "x")
    table = next(b for s in report.chapters[0].sections if s.title == "Cost and energy" for b in s.blocks).table
    shown = [row for row in table.rows if "elsewhere" in row[1]]
    assert len(shown) == 1 and shown[0][3] == "65T"
    assert table.rows[-1][1:4] == ("in all", "at least 10 min 00 s", "545T")


def test_names_of_runs_are_shown_and_never_run(tmp_path):
    odd = "<script>alert(1)"
    other = training_run(tmp_path / "u", config={"student": EVIL, "distill": EVIL})
    page = build([training_run(tmp_path / odd), other], tmp_path / "out")
    assert page.count("<script") == 2 and "<img" not in page
    outline(page)


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    names = run_names([tmp_path / "x/search", tmp_path / "y/search", tmp_path / "z"])
    assert names == ["x/search", "y/search", "z"]


def test_the_best_of_all_runs_is_held_against_every_other(tmp_path):
    runs = [(name, load_training(training_run(tmp_path / name))) for name in ("t", "u")]
    merged = merge_training(runs)
    table = best_matching_table(merged)
    assert table.title == "What t: winner-0.student needed" and len(table.rows) == 5
    row = next(row for row in table.rows if row[0] == "u: winner-0.first-n")
    assert row[2:4] == ("10K", "10× fewer")
    assert next(row for row in table.rows if row[0] == "u: winner-0.student")[3] == "as many"


def test_runs_on_other_held_out_tokens_are_told_apart(tmp_path):
    runs = []
    for name, digest in (("t", "d1"), ("u", "d2")):
        folder = training_run(tmp_path / name)
        (folder / "inputs.json").write_text(json.dumps({"held_out_tokens": digest}))
        runs.append((name, load_training(folder)))
    assert "2 different sets of held-out tokens" in held_out_note(runs)
    assert held_out_note(runs[:1]) == ""


def test_the_page_of_one_run_is_made_too(tmp_path):
    page = build([finished_run(tmp_path / "a", 20)], tmp_path / "out")
    outline(page)
    assert "<h1>Search a</h1>" in page


@pytest.mark.parametrize("file", ["config.json", "pipeline.json", "evaluate.json"])
def test_a_report_does_not_go_where_a_run_lies(tmp_path, capsys, file):
    folder = finished_run(tmp_path / "a", 10)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / file).write_text("{}")
    assert run_command(main, [str(folder), "--out", str(tmp_path / "b")]) == 2
    assert "holds a run" in capsys.readouterr().err and not (tmp_path / "b/report.html").exists()


def test_nothing_is_written_when_one_folder_is_wrong(tmp_path, capsys):
    folder = finished_run(tmp_path / "a", 10)
    assert run_command(main, [str(folder), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_damaged_config_does_not_hide_what_a_run_was(tmp_path):
    for make, kind in ((training_run, "pretraining"), (finished_run, "search"), (evaluation_run, "evaluation"),
                       (proxies_run, "proxies")):  # fmt: skip
        folder = make(tmp_path / kind)
        (folder / "config.json").write_text("{")
        assert kind_of(folder) == kind
        assert any("config.json" in note for note in load_any(folder).notes) or kind == "evaluation"


def test_thinning_keeps_the_ends_and_spreads_the_rest():
    assert thinned(range(5), 5) == [0, 1, 2, 3, 4]
    assert thinned(range(101), 3) == [0, 50, 100]
    assert len(thinned(range(1000), 7)) == 7


def test_what_is_left_out_of_a_picture_is_said(tmp_path):
    folder = training_run(tmp_path / "t")
    (folder / "winner-0.random/evals.jsonl").write_text(lines(evaluations(11.0, 4.5, 9000)))
    page = build([folder], tmp_path / "out")
    assert "evaluations are drawn, evenly spread" in page
    assert len(page_json(page)["run0-training"]["curves"][1]["points"]) == 2000


@pytest.mark.slow
def test_a_thousand_trials_and_twenty_trainings_are_quick_and_small(tmp_path):
    folders = [finished_run(tmp_path / "search", 1000)]
    first = training_run(tmp_path / "t0")
    for start in ("student", "random", "first-n"):
        (first / f"winner-0.{start}/evals.jsonl").write_text(lines(evaluations(11.0, 2.6, 200)))
    folders += [first, *(tmp_path / f"t{n}" for n in range(1, 20))]
    for folder in folders[2:]:
        shutil.copytree(first, folder)
    command = [sys.executable, "-m", "slm_ray.report", *map(str, folders), "--out", str(tmp_path / "all")]
    # Seconds of processor, which do not depend on what else the machine does meanwhile.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert (tmp_path / "all/report.html").stat().st_size < 8e6
