import json
import re
import shutil
import subprocess

import pytest

from slm_ray.report.command import main
from slm_ray.report.costs import costs_of
from slm_ray.report.kinds import kind_of, load_pipeline, load_run
from slm_ray.report.proxies import correlations_table, load_proxies, proxies_picture
from slm_ray.report.render import page_of
from slm_ray.report.runset import (
    held_out_note,
    merge_training,
    pipeline_report,
    set_report,
    single_runs,
)
from slm_ray.report.training import load_training, matching_table
from slm_ray.runtime.commands import run_command
from tests.report.made_evaluation import evaluation_run, make_result, unfinished_evaluation
from tests.report.made_others import pipeline_run, proxies_run
from tests.report.made_search import finished_search, make_trials, write_search
from tests.report.made_training import OPTIONS, training_run
from tests.report.pages import EVIL, outline, pictures


def build(folders, out):
    assert run_command(main, [*map(str, folders), "--out", str(out)]) == 0
    return (out / "report.html").read_text()


def pipeline_page(run):
    return page_of(pipeline_report(run))


# Proxies.


def test_each_proxy_has_a_panel_with_its_correlation_and_interval(tmp_path, capsys):
    folder = proxies_run(tmp_path / "p")
    assert run_command(main, [str(folder)]) == 0
    files = ["proxies.png", "report.md", "report.html"]
    assert capsys.readouterr().out.split() == [str(folder / name) for name in files]
    run = load_proxies(folder)
    assert len(run.candidates) == 13 and len(run.trained) == 12
    first, second = proxies_picture(run).views
    assert first.note == "tau +0.90 (+0.60 to +1.00), rho +0.90 (+0.60 to +1.00)"
    assert second.note == "tau undefined, rho undefined"
    assert [(row["x"], row["y"]) for row in first.rows["rows"][:2]] == [(150.0, 4.0), (146.0, 3.95)]
    shown = (folder / "report.html").read_text()
    outline(shown)
    assert "the loss is nan" in shown and len(pictures(shown)["proxies"]) == 2


def test_the_table_and_the_cost_of_proxies(tmp_path):
    run = load_proxies(proxies_run(tmp_path))
    rows = {row[0]: row for row in correlations_table(run).rows}
    assert rows["perplexity"][1:3] == ("less", "+0.90 (+0.60 to +1.00)")
    assert rows["short training"][-3:-1] == ("10T", "1 min 00 s")
    assert [(cost.what, cost.flops) for cost in costs_of(run)] == [
        ("proxies of all candidates", 13e12 + 4e12), ("short training of all candidates", 13e13),
    ]  # fmt: skip


def test_an_unfinished_report_on_proxies_has_panels_without_correlations(tmp_path, capsys):
    folder = proxies_run(tmp_path / "p", finished=False)
    with (folder / "candidates.jsonl").open("a") as file:
        file.write('{"trial": 13, "stat')
    assert run_command(main, [str(folder)]) == 0
    assert "has not finished" in capsys.readouterr().err
    assert proxies_picture(load_proxies(folder)).views[0].note == "no correlation yet"
    outline((folder / "report.html").read_text())


# Pipelines.


def test_one_page_has_training_evaluation_the_front_and_the_winners_shape(tmp_path, capsys):
    folder = pipeline_run(tmp_path)
    assert run_command(main, [str(folder)]) == 0
    files = ["training.png", "evaluation.png", "front.png", "report.md", "report.html"]
    assert capsys.readouterr().out.split() == [str(folder / name) for name in files]
    shown = (folder / "report.html").read_text()
    outline(shown)
    assert "Pipeline of smollm2-135m" in shown and "slm-ray pipeline --tokens 100k" in shown
    found = pictures(shown)
    assert {"training", "text", "tasks", "efficiency", "front", "front-shape", "progress"} <= set(found)
    (level,) = found["training"][0]["datasets"]["levels"]
    assert level["text"].startswith("teacher smollm2-135m") and level["y"] == pytest.approx(14.88, abs=0.01)
    text = (folder / "report.md").read_text()
    assert all(f"({name})" in text for name in files[:3])


def test_the_teachers_level_is_drawn_on_the_same_tokens_only_and_by_any_name(tmp_path):
    assert load_pipeline(pipeline_run(tmp_path / "a", held_out="d2")).runs[0].records.level is None
    folder = pipeline_run(tmp_path / "b")
    result = json.loads(json.dumps(make_result()).replace('"smollm2-135m"', '"/models/teacher"'))
    evaluation_run(folder / "evaluate", result)
    state = json.loads((folder / "pipeline.json").read_text())
    (folder / "pipeline.json").write_text(json.dumps(state | {"teacher": "/models/teacher"}))
    assert load_pipeline(folder).runs[0].records.level == ("teacher /models/teacher", pytest.approx(2.7))


def test_every_cost_is_in_one_table_once(tmp_path):
    report = pipeline_report(load_pipeline(pipeline_run(tmp_path)))
    table = next(part for part in report.chapters[0].sections if part.title == "Cost and energy").blocks[0]
    shown = {row[0]: row[1:] for row in table.rows}
    assert shown["search"] == ("3 min 22 s", "12T", "not known")
    assert shown["capture of logits"][1] == "5T" and shown["evaluation"][0] == "6 min 52 s"
    assert shown["training of winner-0.student"] == ("1 min 40 s", "50T", "2 kWh")
    assert shown["teacher beside winner-0.student"] == ("counted above", "30T", "counted above")
    assert shown["in all"] == ("16 min 44 s", "at least 257T", "at least 6 kWh")


@pytest.mark.parametrize("gone", ["search", "evaluate", "pretrain"])
def test_what_is_not_there_yet_is_noted_and_the_rest_shown(tmp_path, gone):
    folder = pipeline_run(tmp_path)
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = load_pipeline(folder)
    assert any("not come to its pretraining" in note for note in run.notes) == (gone == "pretrain")
    outline(pipeline_page(run))


@pytest.mark.parametrize("part", ["pipeline.json", "evaluate/evaluate.json", "logits/manifest.json"])
def test_damage_in_any_stage_is_a_note(tmp_path, part):
    folder = pipeline_run(tmp_path)
    (folder / part).write_text("{")
    run = load_pipeline(folder)
    assert any(part.split("/")[-1] in note for note in run.notes)
    outline(pipeline_page(run))


# Several runs.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page of every kind of run, and its folder."""
    base = tmp_path_factory.mktemp("set")
    folders = [
        finished_search(base / "a", 40), write_search(base / "b", make_trials(12), None), training_run(base / "t"),
        pipeline_run(base / "p"), evaluation_run(base / "e"), unfinished_evaluation(base / "f"),
        proxies_run(base / "x"),
    ]  # fmt: skip
    before = {folder: sorted(folder.rglob("*")) for folder in folders}
    shown = build(folders, base / "all")
    assert {folder: sorted(folder.rglob("*")) for folder in folders} == before, "the runs are left as they are"
    return shown, base / "all"


def test_one_page_has_all_runs_and_what_they_share(whole):
    shown, out = whole
    tags = outline(shown)
    assert tags.links == ["#all", *(f"#run{n}" for n in range(9))]
    assert {attrs["id"] for _, attrs in tags.tags if "id" in attrs} >= {"all", *(f"run{n}" for n in range(9))}
    assert "7 runs: 2 searches, 1 pretraining, 2 evaluations, 1 report on proxies, 1 pipeline" in shown
    found = pictures(shown)
    assert {"fronts", "all-training", "run0-front", "run0-front-shape", "run2-training", "run3-training", "run4-tasks",
            "run6-efficiency", "run8-proxies"} <= set(found)  # fmt: skip
    assert {row["series"] for row in found["fronts"][0]["datasets"]["rows"]} == {"a", "b", "p/search"}
    assert len({row["series"] for row in found["all-training"][0]["datasets"]["rows"]}) == 6
    for title in ("Overview", "The fronts of all searches", "Training curves of all runs", "The evaluations",
                  "Cost and energy"):  # fmt: skip
        assert f"<h3>{title}</h3>" in shown
    text = (out / "report.md").read_text()
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert len(list(out.glob("*.png"))) == 9 and "(fronts.png)" in text


def test_what_is_missing_in_a_run_is_noted_at_the_top_with_its_name(whole):
    notes = re.findall(r'<p class="note" role="note">(.*?)</p>', whole[0])
    assert any(note.startswith("b: This run has not finished") for note in notes)
    assert any(note.startswith("f: This evaluation has not finished") for note in notes)


def test_the_scripts_are_valid_javascript(whole, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for number, text in enumerate(re.findall(r"<script>(.*?)</script>", whole[0], re.DOTALL)):
        (tmp_path / f"{number}.js").write_text(text)
        subprocess.run([node, "--check", str(tmp_path / f"{number}.js")], check=True)


def test_the_search_before_a_training_is_counted_once(tmp_path):
    runs = [load_run(training_run(tmp_path / name)) for name in ("t", "u")]
    report = set_report(runs, "x")
    table = next(s for s in report.chapters[0].sections if s.title == "Cost and energy").blocks[0]
    shown = [row for row in table.rows if "elsewhere" in row[1]]
    assert len(shown) == 1 and shown[0][3] == "65T"
    assert table.rows[-1][1:4] == ("in all", "at least 10 min 00 s", "545T")


def test_names_of_runs_are_shown_and_never_run(tmp_path):
    other = training_run(tmp_path / "u", options={**OPTIONS, "student": EVIL, "distill": EVIL})
    outline(build([training_run(tmp_path / "<script>alert(1)"), other], tmp_path / "out"))


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    folders = [finished_search(tmp_path / name, 3) for name in ("x/search", "y/search", "z")]
    assert [run.name for run in single_runs([load_run(folder) for folder in folders])] == ["x/search", "y/search", "z"]


def test_the_best_of_all_runs_is_held_against_every_other(tmp_path):
    runs = [(name, load_training(training_run(tmp_path / name))) for name in ("t", "u")]
    table = matching_table(merge_training(runs), of_best=True)
    assert table.title == "What t: winner-0.student needed" and len(table.rows) == 5
    rows = {row[0]: row for row in table.rows}
    assert rows["u: winner-0.first-n"][3:5] == ("10K", "10× fewer")
    assert rows["u: winner-0.student"][4] == "as many"


def test_runs_on_other_held_out_tokens_are_told_apart(tmp_path):
    runs = [(name, load_training(training_run(tmp_path / name, held_out=name))) for name in ("t", "u")]
    assert "2 different sets of held-out tokens" in held_out_note(runs) and held_out_note(runs[:1]) == ""


@pytest.mark.parametrize("file", ["config.json", "pipeline.json"])
def test_a_report_does_not_go_where_a_run_lies(tmp_path, capsys, file):
    folder = finished_search(tmp_path / "a", 10)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / file).write_text("{}")
    assert run_command(main, [str(folder), "--out", str(tmp_path / "b")]) == 2
    assert "holds a run" in capsys.readouterr().err and not (tmp_path / "b/report.html").exists()


def test_a_damaged_config_does_not_hide_what_a_run_was(tmp_path):
    makers = {"pretrain": training_run, "search": finished_search, "evaluate": evaluation_run, "proxies": proxies_run}
    for kind, make in makers.items():
        folder = make(tmp_path / kind)
        (folder / "config.json").write_text("{")
        assert kind_of(folder) == kind
        assert any("config.json" in note for note in load_run(folder).records.notes) or kind == "evaluate"
