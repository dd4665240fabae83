import json

import pytest

from slm_ray.records.evaluation import EvaluationResult
from slm_ray.report.command import main
from slm_ray.report.evaluation import (
    differences_table,
    efficiency_table,
    generation_table,
    load_evaluation,
    names_of,
    of_result,
    samples,
    short_names,
    speed_table,
    text_table,
)
from slm_ray.report.evaluation_charts import difference_pictures, efficiency_picture, tasks_picture, text_picture
from slm_ray.report.evaluation_report import evaluation_report, evaluation_text, write_evaluation_report
from slm_ray.report.evaluation_tasks import task_rows, tasks_table
from slm_ray.report.render import markdown_of, page_of
from slm_ray.runtime.commands import run_command
from tests.report.made_evaluation import MODELS, evaluation_run, make_result, parsed, unfinished_evaluation
from tests.report.pages import EVIL, outline, pictures

FILES = ["evaluation.png", "report.md", "report.html"]
STUDENT, TEACHER = "winner-0.student", "smollm2-135m"


def page(run):
    return page_of(evaluation_report(run))


def markdown(run):
    return markdown_of(evaluation_report(run))


def by(table, columns=1):
    """A table's rows as mappings, by the first columns."""
    return {row[:columns] if columns > 1 else row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


@pytest.fixture(scope="module")
def run():
    return of_result(parsed())


def test_the_command_knows_an_evaluation(tmp_path, capsys):
    folder = evaluation_run(tmp_path / "e")
    assert run_command(main, [str(folder)]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(folder / name) for name in FILES] and "could not be had" in output.err
    assert (folder / FILES[0]).read_bytes().startswith(b"\x89PNG")


def test_short_names_tell_models_apart_and_keep_hub_ids(run):
    names = ["out/pretrain/winner-0.student/model", "out/pretrain/winner-0.random/model", "out/search/winners/0", "a/b"]
    assert list(short_names(names).values()) == ["winner-0.student", "winner-0.random", "winners/0", "a/b"]
    both = ["/x/one/model", "/y/one/model", "/x/one/winners/0", "/y/one/winners/0"]
    assert len(set(short_names(both).values())) == 4
    assert short_names(["/x/one", "/x/one/model"]) == {"/x/one": "/x/one", "/x/one/model": "/x/one/model"}
    assert short_names([TEACHER, "./half"]) == {TEACHER: TEACHER, "./half": "half"}
    assert names_of(run.models)[MODELS[3][0]] == f"random twin of {STUDENT}"


def test_the_text_table_has_a_row_per_domain_and_model_with_intervals(run):
    shown = by(text_table(run), 2)
    assert len(shown) == 2 * len(MODELS)
    row = shown["books", STUDENT]
    assert row["perplexity"] == "33.1" and row["95% interval"] == "30.6 to 35.8" and row["loss"] == "3.5000"
    assert row["bits per byte"] == "1.2963" and row["against the first"] == "–"
    assert shown["books", TEACHER]["against the first"] == "better"
    assert "text" not in text_table(of_result(parsed(domains=("books",)))).header


def test_the_task_table_marks_the_best_and_what_is_within_the_noise():
    result = make_result()
    for difference in result["differences"]:
        if difference["kind"] == "task":
            wide = difference["of"] == "piqa" and difference["model"] == TEACHER
            difference["verdict"] = "within the noise" if wide else "worse"
    run = of_result(EvaluationResult.model_validate(result))
    table, shown = tasks_table(run), by(tasks_table(run))
    assert list(shown) == ["ARC-Easy", "HellaSwag", "PIQA", "LAMBADA (OpenAI)", "BLiMP", "average of small"]
    assert shown["PIQA"][TEACHER].endswith("≈") and not shown["PIQA"][STUDENT].endswith("≈")
    assert shown["ARC-Easy"]["chance"] == "25.0" and shown["ARC-Easy"]["measured"] == "0-shot, 2.38K documents"
    assert table.strong == {(row, table.header.index(TEACHER)) for row in range(6)}
    members = tasks_table(run, members=True)
    assert [row[0] for row in members.rows] == ["BLiMP, anaphor agreement", "BLiMP, island effects"]


def test_an_average_is_the_plain_mean_of_tasks_and_their_groups(run):
    rows = {row.name: row for row in task_rows(run)}
    average = rows["small"]
    tasks = [rows[name] for name in ("arc_easy", "hellaswag", "piqa", "lambada_openai", "blimp")]
    assert average.scores[0].value == pytest.approx(sum(row.scores[0].value for row in tasks) / 5)
    errors = [row.scores[0].stderr for row in tasks]
    assert average.scores[0].stderr == pytest.approx(sum(error**2 for error in errors) ** 0.5 / 5)
    assert average.chance == pytest.approx(0.3) and average.facts == "mean of 5 tasks"


def test_a_model_that_lacks_a_task_has_no_average_and_a_metric_of_less_is_left_out():
    result = make_result()
    del result["models"][1]["tasks"][0]
    for model in result["models"]:
        model["tasks"][-1]["metrics"]["acc"]["better"] = "less"
    result["suites"] = {"small": ["arc_easy", "piqa", "blimp_island"]}
    rows = task_rows(of_result(EvaluationResult.model_validate(result)))
    average = next(row for row in rows if row.kind == "average")
    assert average.scores[1] is None and average.facts == "mean of 2 tasks, 1 of which less is better left out"


def test_differences_have_signs_intervals_and_verdicts(run):
    shown = {(row[0], row[2]): row for row in differences_table(run, "text").rows}
    assert shown["books", TEACHER][4:] == ("-0.5000", "-0.5196 to -0.4804", "better")
    assert len(differences_table(run, "task", {"blimp_island"}).rows) == 5 * 6
    assert not differences_table(run, "generation")


def test_generation_efficiency_and_speed(run):
    generation = by(generation_table(run))
    assert generation["bleu"][STUDENT] == "12.00 (11.02 to 12.98)" and generation["repetition"]["better is"] == "less"
    assert generation["distinct 2"]["better is"] == "neither"
    prompt, answers = samples(run)[0]
    assert prompt == "Python is a" and answers[0] == ("reference", "a language") and len(answers) == 1 + len(MODELS)
    row = by(efficiency_table(run))[STUDENT]
    assert row["weights"] == "256 MiB" and row["energy/token"] == "not known"
    decode = speed_table(run, "decode")
    assert decode.header[3:] == ("tokens/s", "latency of a token, median", "90%", "99%", "slowest")
    assert decode.rows[0][2:6] == (STUDENT, "59.5", "16.8 ms", "20.2 ms")
    assert len(speed_table(run, "prefill").rows) == 2 * len(MODELS)


def test_the_pictures_hold_what_the_tables_hold(run):
    text = text_picture(run).views[0].rows["rows"]
    assert len(text) == 12 and text[0]["group"] == "python-docs" and text[0]["value"] == pytest.approx(3.2 / 2.7)
    tasks = tasks_picture(run).views[0].rows
    assert {row["group"] for row in tasks["rows"]} == {row.title for row in task_rows(run) if row.kind != "member"}
    assert tasks["chances"][0] == {"group": "ARC-Easy", "value": 25.0}
    assert [picture.views[0].title.split(",")[0] for picture in difference_pictures(run)] == [
        f"Loss less that of {STUDENT}", f"Score less that of {STUDENT}",
    ]  # fmt: skip
    scatter = efficiency_picture(run).views[0].rows["rows"]
    assert len({row["across"] for row in scatter}) == 6 and len({row["up"] for row in scatter}) == 3
    assert len(scatter) == 6 * 3 * 6


def test_the_page_is_whole(run):
    shown = page(run)
    outline(shown)
    assert list(pictures(shown)) == ["text", "tasks", "differences-0", "differences-1", "efficiency"]


def test_names_and_texts_are_shown_and_never_run(tmp_path):
    result = make_result(command=EVIL, notes=[EVIL])
    result["models"][0] |= {"error": EVIL, "digest": EVIL}
    result["models"][1]["name"] = EVIL
    result["models"][0]["tasks"][0]["title"] = result["models"][0]["text"][0]["domain"] = EVIL
    result["models"][0]["generation"]["samples"][0] |= {"prompt": EVIL, "text": EVIL, "reference": EVIL}
    result["models"][0]["efficiency"]["notes"] = [EVIL]
    folder = evaluation_run(tmp_path, result)
    outline(page(load_evaluation(folder)))
    outside = "".join(markdown(load_evaluation(folder)).split("```")[::2])
    assert "&lt;" not in outside and "<" not in outside.replace("\\<", "")
    assert [path.name for path in write_evaluation_report(folder)] == FILES


@pytest.mark.parametrize("gone", ["text", "tasks", "generation", "efficiency"])
def test_what_was_not_measured_is_left_out(gone):
    result = make_result()
    for model in result["models"]:
        model[gone] = [] if gone in ("text", "tasks") else None
    result["differences"] = [d for d in result["differences"] if d["kind"] != {"tasks": "task"}.get(gone, gone)]
    found = EvaluationResult.model_validate(result)
    shown = page(of_result(found))
    outline(shown)
    title = {"text": "Held-out text", "tasks": "Tasks", "generation": "Generation", "efficiency": "Efficiency"}[gone]
    assert f"<h2>{title}</h2>" not in shown and shown.count("<h2>") > 5
    assert "None" not in evaluation_text(found) and "nan" not in evaluation_text(found)


def test_a_model_that_failed_is_noted_and_the_others_are_shown():
    result = make_result()
    nothing = {"text": [], "tasks": [], "generation": None, "efficiency": None}
    result["models"][1] |= nothing | {"error": "it does not load"}
    found = EvaluationResult.model_validate(result)
    assert "winner-0.random was not measured whole: it does not load" in of_result(found).notes
    outline(page(of_result(found)))
    assert "it does not load" in evaluation_text(found)


def test_an_unfinished_evaluation_is_shown_from_its_parts(tmp_path, capsys):
    folder = unfinished_evaluation(tmp_path / "e")
    (folder / "models/model-0/task-arc_easy-00.json").write_text('{"task": "arc')
    assert run_command(main, [str(folder)]) == 0
    said = capsys.readouterr().err
    assert "has not finished" in said and "arc_easy-00.json is not valid JSON" in said
    run = load_evaluation(folder)
    assert [run.called(model.name) for model in run.models] == [STUDENT, "winner-0.random"]
    assert [task.task for task in run.models[1].tasks] == ["arc_easy", "hellaswag"]
    outline((folder / "report.html").read_text())


@pytest.mark.parametrize("damage", ["{", json.dumps(make_result() | {"models": [3]})])
def test_a_damaged_or_older_result_is_a_note(tmp_path, damage):
    folder = evaluation_run(tmp_path)
    (folder / "evaluate.json").write_text(damage)
    run = load_evaluation(folder)
    assert "evaluate.json" in run.notes[0] and not run.measured
    outline(page(run))


def test_markdown_has_every_section_and_bold_bests(run):
    text = markdown(run)
    for title in ("## The models", "## Held-out text", "## Tasks", f"## Against {STUDENT}", "## Generation",
                  "## Efficiency", "## What was spent", "## How to reproduce", "### Environment"):  # fmt: skip
        assert f"\n{title}\n" in text
    assert "(evaluation.png)" in text and "**79.3 ± 0.8" in text and "*reference:* a language" in text


def test_the_text_for_a_terminal_has_everything_in_columns():
    text = evaluation_text(parsed())
    for wanted in ("33.1", "30.6 to 35.8", "ARC-Easy", "average of small", "bleu", "latency of a token", "note:"):
        assert wanted in text
    assert "island effects" not in text  # the group stands for it
    assert evaluation_text(EvaluationResult()) == "Nothing was measured."
