import json
import math
import re
import shutil
import subprocess
import sys

import pytest
from synthetic_training import CONFIG, STARTS, evaluations, lines, training_run, write_model
from test_report_page import EVIL, outline, page_json

from slm_ray.report import build_training_report
from slm_ray.report.command import main
from slm_ray.report.training import load_training
from slm_ray.report.training_chart import mark_labels, training_chart
from slm_ray.report.training_page import training_headline, training_markdown, training_page
from slm_ray.report.training_tables import equal_flops_table, matching_table, models_table, training_cost_table
from slm_ray.runtime.commands import run_command

FILES = ["training.png", "report.md", "report.html"]


def test_the_command_knows_a_pretraining_run_and_writes_its_report(tmp_path, capsys):
    folder = training_run(tmp_path / "run")
    assert run_command(main, [str(folder)]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(folder / name) for name in FILES] and output.err == ""
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_are_those_of_the_records(tmp_path):
    chart = training_chart(load_training(training_run(tmp_path)))
    assert [curve.model.name for curve in chart.curves] == [f"winner-0.{start}" for start in STARTS]
    for curve, (first, last, searched) in zip(chart.curves, STARTS.values(), strict=True):
        for point, record in zip(curve.points, evaluations(first, last), strict=True):
            assert (point.tokens, point.loss) == (record["tokens"], record["loss"])
            # The search is counted from the first point on, and the teacher with every token.
            assert point.flops == pytest.approx(searched + 8e8 * record["tokens"])
            assert point.perplexity == pytest.approx(math.exp(record["loss"]))
    assert [curve.is_best for curve in chart.curves] == [True, False, False]


def test_tokens_and_flops_to_match_are_marked_and_in_the_table(tmp_path):
    run = load_training(training_run(tmp_path))
    chart = training_chart(run)
    student, _, first_n = (evaluations(first, last) for first, last, _ in STARTS.values())
    marks = {chart.curves[mark.reference].model.start: mark for mark in chart.marks}
    assert marks["random"].at.tokens == 0 and marks["random"].tokens_text == "before its first step"
    reached = next(record for record in student if record["loss"] <= first_n[-1]["loss"])
    assert marks["first-n"].at.tokens == reached["tokens"] > 0
    assert marks["first-n"].tokens_text == f"{first_n[-1]['tokens'] / reached['tokens']:.3g}× fewer"
    flops = 8e8 * first_n[-1]["tokens"] / (65e12 + 8e8 * reached["tokens"])
    assert marks["first-n"].flops_text == f"{flops:.3g}× fewer"
    assert "random matched: before its first step" in [text for _, text in mark_labels(chart, "tokens")]
    rows = {(row[0].split(" (")[0], row[1]): row for row in matching_table(run).rows}
    assert rows["winner-0.random", "winner-0.student"][2] == "0, before its first step"
    assert rows["winner-0.student", "winner-0.random"][2] == "not reached"
    assert rows["winner-0.first-n", "winner-0.student"][3] == marks["first-n"].tokens_text
    assert "Before its first step it was already as good as winner-0.random" in training_headline(run)


def test_the_tables_say_what_was_reached_and_spent(tmp_path):
    run = load_training(training_run(tmp_path))
    first = STARTS["student"][0]
    shown = dict(zip(models_table(run).header, models_table(run).rows[0], strict=True))
    assert shown["model"] == "winner-0.student" and shown["tokens"] == "100K" and shown["state"] == "done"
    assert shown["first perplexity"] == f"{math.exp(first):.1f}"
    cost = dict(zip(training_cost_table(run).header, training_cost_table(run).rows[0], strict=True))
    assert cost["own FLOPs"] == "50T" and cost["teacher's"] == "30T" and cost["search's"] == "65T"
    assert cost["in all"] == "145T" and cost["peak memory"] == "1 GiB" and cost["energy"] == "2 kWh"
    equal = {row[0]: row[1:] for row in equal_flops_table(run).rows}
    assert equal["winner-0.random"][2] == "100K" and equal["winner-0.student"][2] == "10K"


def test_the_page_is_whole_needs_nothing_and_hides_nothing(tmp_path):
    page = training_page(load_training(training_run(tmp_path)))
    assert outline(page).links == []
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "{{" not in page
    data = page_json(page)["training"]
    assert [curve["look"] for curve in data["curves"]] == [None, 0, 1]
    assert len(data["curves"][0]["points"]) == 11 and len(data["marks"]) == 2
    assert "trust_remote_code=True" in page


def test_names_are_shown_and_never_run(tmp_path):
    folder = training_run(tmp_path, config={**CONFIG, "data": EVIL, "command": EVIL})
    (folder / "environment.json").write_text(json.dumps({EVIL: EVIL}))
    described = json.loads((folder / "winner-0.random/model.json").read_text())
    (folder / "winner-0.random/model.json").write_text(json.dumps(described | {"start": EVIL}))
    page = training_page(load_training(folder))
    assert page.count("<script") == 2 and "<img" not in page
    outline(page)


def test_an_unfinished_run_shows_what_there_is_and_says_so(tmp_path, capsys):
    folder = training_run(tmp_path / "run", finished=False)
    (folder / "winner-0.random/evals.jsonl").write_text(lines(evaluations(11, 4, 3)) + '{"step": 3, "tok')
    (folder / "winner-0.first-n/evals.jsonl").unlink()
    (folder / "winner-0.first-n/steps.jsonl").unlink()
    failure = {"failure": {"message": "the loss is nan at step 3"}}
    (folder / "winner-0.first-n/status.json").write_text(json.dumps(failure))
    assert run_command(main, [str(folder)]) == 0
    assert "0 of 3 models are done" in capsys.readouterr().err
    run = load_training(folder)
    states = {model.name: model.state for model in run.models}
    assert states == {"winner-0.student": "unfinished", "winner-0.random": "unfinished", "winner-0.first-n": "failed"}
    page = (folder / "report.html").read_text()
    assert "the loss is nan at step 3" in page and f"--resume {folder}" in page
    assert len(page_json(page)["training"]["curves"]) == 2
    outline(page)


@pytest.mark.parametrize("damage", ["config", "result", "evals", "model", "nothing", "losses"])
def test_damaged_records_are_reported_and_the_rest_is_shown(tmp_path, damage):
    folder = training_run(tmp_path)
    if damage == "result":
        (folder / "result.json").write_text('{"models": [{"na')
    if damage == "evals":
        path = folder / "winner-0.random/evals.jsonl"
        path.write_text("{broken\n" + path.read_text())
    if damage == "model":
        (folder / "winner-0.random/model.json").write_text("[]")
    if damage == "nothing":
        for start in STARTS:
            shutil.rmtree(folder / f"winner-0.{start}")
    if damage == "config":
        (folder / "config.json").write_text(json.dumps({"student": "x", "distill": "none"}))
    if damage == "losses":
        records = [record | {"loss": None, "stderr": None, "bits_per_byte": None} for record in evaluations(1, 1)]
        (folder / "winner-0.student/evals.jsonl").write_text(lines(records))
    run = load_training(folder)
    assert bool(run.notes) == (damage in ("result", "evals", "model"))
    outline(training_page(run))
    assert [path.name for path in build_training_report(folder)] == FILES


def test_the_level_of_growth_is_a_line(tmp_path):
    folder = training_run(tmp_path)
    (folder / "growth.json").write_text(json.dumps({"reference_loss": 2.5}))
    chart = training_chart(load_training(folder))
    assert chart.level == ("loss to reach", pytest.approx(math.exp(2.5)))
    assert chart.y.low < math.exp(2.5)
    assert page_json(training_page(load_training(folder)))["training"]["levels"][0]["label"] == "12.2"


def test_seeds_of_one_start_are_told_apart_by_name(tmp_path):
    folder = training_run(tmp_path)
    shutil.copytree(folder / "winner-0.random", folder / "winner-0.random.seed1")
    chart = training_chart(load_training(folder))
    texts = [text for _, text in mark_labels(chart, "tokens")]
    assert "winner-0.random and winner-0.random.seed1 matched: before its first step" in texts


def test_markdown_has_every_table(tmp_path):
    text = training_markdown(load_training(training_run(tmp_path)))
    for title in ("# Training", "## The models", "## Tokens and FLOPs to match", "## What was spent", "## Config"):
        assert title in text
    assert "![Perplexity against tokens, and against FLOPs](training.png)" in text


def test_twenty_models_are_quick_and_small(tmp_path):
    folder = training_run(tmp_path)
    for number in range(17):
        shutil.copytree(folder / "winner-0.random", folder / f"winner-0.random.seed{number}")
    (folder / "winner-0.student/evals.jsonl").write_text(lines(evaluations(4.0, 2.6, 500)))
    build_training_report(folder)
    assert (folder / "report.html").stat().st_size < 8e6


def test_a_rebuilt_report_is_the_same(tmp_path):
    folder = training_run(tmp_path)
    first = [path.read_bytes() for path in build_training_report(folder)]
    assert [path.read_bytes() for path in build_training_report(folder)] == first


def test_it_needs_no_torch(tmp_path):
    folder = training_run(tmp_path / "run")
    program = (
        "import sys\nfrom slm_ray.report.command import main\n"
        f"assert main([{str(folder)!r}]) == 0\n"
        "print(sorted({'torch', 'transformers', 'ray', 'deepspeed'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.endswith("[]\n")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_scripts_are_valid_javascript(tmp_path):
    page = training_page(load_training(training_run(tmp_path / "run")))
    (tmp_path / "page.js").write_text(re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1))
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True)


def test_a_model_with_one_evaluation_has_no_comparison(tmp_path):
    folder = training_run(tmp_path)
    shutil.rmtree(folder / "winner-0.first-n")
    write_model(folder, "first-n", count=1)
    run = load_training(folder)
    assert len(run.curves) == 2 and len(training_chart(run).curves) == 3
    outline(training_page(run))
