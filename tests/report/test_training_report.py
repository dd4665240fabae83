import math

import pytest

from slm_ray.records.base import write_record
from slm_ray.records.training import GrowthTarget, TrainEvaluation
from slm_ray.report.command import main
from slm_ray.report.render import markdown_of, page_of
from slm_ray.report.training import (
    equal_flops_table,
    load_training,
    marks,
    matching_table,
    models_table,
    training_cost_table,
)
from slm_ray.report.training_report import (
    build_training_report,
    mark_labels,
    training_headline,
    training_picture,
    training_report,
)
from slm_ray.runtime.commands import run_command
from tests.report.made_training import (
    STARTS,
    evaluations,
    fail_model,
    training_run,
    write_lines,
)
from tests.report.pages import outline, pictures

FILES = ["training.png", "report.md", "report.html"]


def page(run):
    return page_of(training_report(run))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_run(tmp_path_factory.mktemp("training") / "run")


def test_the_command_knows_a_pretraining_run(folder, capsys):
    assert run_command(main, [str(folder)]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(folder / name) for name in FILES] and output.err == ""
    assert (folder / FILES[0]).read_bytes().startswith(b"\x89PNG")


def test_the_curves_are_those_of_the_records(folder):
    picture, left_out = training_picture(load_training(folder))
    tokens, flops = picture.views
    assert left_out == ""
    for start, (first, last, searched) in STARTS.items():
        assert tokens.rows["rows"] is flops.rows["rows"]
        mine = [row for row in tokens.rows["rows"] if row["series"] == f"winner-0.{start}" and "tip" in row]
        # What lies above the picture is cut off where the line crosses its top.
        for at, record in zip(mine, evaluations(first, last)[-len(mine) :], strict=True):
            assert at["tokens"] == record["tokens"] and at["y"] == pytest.approx(math.exp(record["loss"]), rel=1e-5)
            # The search is counted from the first point on, and the teacher with every token.
            assert at["flops"] == pytest.approx(searched + 8e8 * record["tokens"])
            assert at["low"] < at["y"] < at["high"] and len(mine) >= 8
    assert len(tokens.rows["marks"]) == 2


def test_tokens_and_flops_to_match_are_marked_and_in_the_table(folder):
    run = load_training(folder)
    student, _, first_n = (evaluations(first, last) for first, last, _ in STARTS.values())
    found = {mark.other.start: mark for mark in marks(run)}
    assert found["random"].at.tokens == 0 and found["random"].tokens == "before its first step"
    reached = next(record for record in student if record["loss"] <= first_n[-1]["loss"])
    assert found["first-n"].at.tokens == reached["tokens"] > 0
    assert found["first-n"].tokens == f"{first_n[-1]['tokens'] / reached['tokens']:.3g}× fewer"
    flops = 8e8 * first_n[-1]["tokens"] / (65e12 + 8e8 * reached["tokens"])
    assert found["first-n"].flops == f"{flops:.3g}× fewer"
    assert "random matched: before its first step" in [text for _, text in mark_labels(run, marks(run), "tokens")]
    rows = {(row[0], row[2]): row for row in matching_table(run).rows}
    assert rows["winner-0.random", "winner-0.student"][3] == "0 (before its first step)"
    assert rows["winner-0.student", "winner-0.random"][3] == "not reached"
    assert rows["winner-0.first-n", "winner-0.student"][4] == found["first-n"].tokens
    assert "Before its first step it was already as good as winner-0.random" in training_headline(run)


def test_the_tables_hold_what_was_reached_and_spent(folder):
    run = load_training(folder)
    shown = dict(zip(models_table(run).header, models_table(run).rows[0], strict=True))
    assert shown["model"] == "winner-0.student" and shown["tokens"] == "100K" and shown["state"] == "done"
    assert shown["first perplexity"] == f"{math.exp(STARTS['student'][0]):.1f}"
    assert shown["weights"] == "128 MiB, bfloat16"
    cost = dict(zip(training_cost_table(run).header, training_cost_table(run).rows[0], strict=True))
    assert cost["own FLOPs"] == "50T" and cost["teacher's"] == "30T" and cost["search's"] == "65T"
    assert cost["in all"] == "145T" and cost["peak memory"] == "1 GiB" and cost["energy"] == "2 kWh"
    equal = {row[0]: row[1:] for row in equal_flops_table(run).rows}
    assert equal["winner-0.random"][2] == "100K" and equal["winner-0.student"][2] == "10K"


def test_the_page_and_the_markdown_are_whole(folder):
    run = load_training(folder)
    shown = page(run)
    outline(shown)
    assert "trust_remote_code=True" in shown and list(pictures(shown)) == ["training"]
    text = markdown_of(training_report(run))
    for title in ("# Training", "## The models", "## Tokens and FLOPs to match", "## What was spent", "### Config"):
        assert f"{title}\n" in text
    assert "![Perplexity against tokens, and against FLOPs](training.png)" in text


def test_an_unfinished_run_shows_what_there_is_and_says_so(tmp_path, capsys):
    folder = training_run(tmp_path / "run", finished=False)
    path = folder / "winner-0.random" / TrainEvaluation.FILE
    write_lines(path.parent, TrainEvaluation, evaluations(11, 4, 3))
    path.write_text(path.read_text() + '{"step": 3, "tok')
    fail_model(folder / "winner-0.first-n", "the loss is nan at step 3")
    assert run_command(main, [str(folder)]) == 0
    assert "0 of 3 models are done" in capsys.readouterr().err
    states = {model.name: model.state for model in load_training(folder).models}
    assert states == {"winner-0.student": "unfinished", "winner-0.random": "unfinished", "winner-0.first-n": "failed"}
    shown = (folder / "report.html").read_text()
    assert "the loss is nan at step 3" in shown and f"--resume {folder}" in shown
    assert {row["series"] for row in pictures(shown)["training"][0]["datasets"]["rows"]} == {
        "winner-0.student", "winner-0.random",
    }  # fmt: skip
    outline(shown)


@pytest.mark.parametrize(
    ("file", "content", "noted"),
    [
        ("result.json", '{"models": [{"na', True), ("winner-0.random/evals.jsonl", "{broken\n", True),
        ("winner-0.random/evals.jsonl", "", False),
    ],
)  # fmt: skip
def test_damaged_records_are_noted_and_the_rest_is_shown(tmp_path, file, content, noted):
    folder = training_run(tmp_path)
    (folder / file).write_text(content)
    run = load_training(folder)
    assert bool(run.notes) == noted and len(run.models) == 3
    outline(page(run))
    assert [path.name for path in build_training_report(folder)] == FILES


def test_the_level_of_growth_is_a_line(tmp_path):
    folder = training_run(tmp_path)
    write_record(folder, GrowthTarget(
        source="t", source_digest="d", source_layers=4, reference_loss=2.5, reference_from="t"))  # fmt: skip
    picture, _ = training_picture(load_training(folder))
    assert picture.views[0].rows["levels"][0]["y"] == pytest.approx(math.exp(2.5))
    assert picture.views[0].rows["levels"][0]["text"].startswith("loss to reach")


def test_many_evaluations_are_thinned_and_that_is_said(tmp_path):
    folder = training_run(tmp_path)
    write_lines(folder / "winner-0.random", TrainEvaluation, evaluations(11.0, 4.5, 3000))
    picture, left_out = training_picture(load_training(folder))
    assert "evaluations are drawn, evenly spread" in left_out
    assert sum(row["series"] == "winner-0.random" for row in picture.views[0].rows["rows"]) in range(650, 667)
    build_training_report(folder)
    assert (folder / "report.html").stat().st_size < 1.5e6
