import base64
import hashlib
import json
import re

import pytest
from made_evaluation import MODELS, evaluation_run, make_result, unfinished_evaluation
from test_report_page import EVIL, outline, page_json

from slm_ray.config.errors import UserError
from slm_ray.report.command import main
from slm_ray.report.evaluation import evaluation_text, load_evaluation, parse_evaluation, write_evaluation_report
from slm_ray.report.evaluation_chart import difference_intervals, scatter_data, task_intervals, text_intervals
from slm_ray.report.evaluation_names import names_of, short_names
from slm_ray.report.evaluation_page import evaluation_markdown, evaluation_page
from slm_ray.report.evaluation_plot import draw_evaluation
from slm_ray.report.evaluation_tables import (
    differences_table,
    efficiency_table,
    generation_samples,
    generation_table,
    models_table,
    speed_table,
    text_table,
)
from slm_ray.report.evaluation_tasks import task_rows, tasks_table
from slm_ray.runtime.commands import run_command

FILES = ["evaluation.png", "report.md", "report.html"]
STUDENT, TEACHER = "winner-0.student", "smollm2-135m"


def rows_of(table, *keys):
    """A table's rows as mappings, by the first columns."""
    return {row[: keys[0]] if keys[0] > 1 else row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def test_the_command_knows_an_evaluation_and_writes_its_report(tmp_path, capsys):
    folder = evaluation_run(tmp_path / "e")
    assert run_command(main, [str(folder)]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(folder / name) for name in FILES]
    assert "could not be had" in output.err
    assert (folder / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_short_names_tell_models_apart_and_keep_hub_ids():
    names = ["out/pretrain/winner-0.student/model", "out/pretrain/winner-0.random/model", "out/search/winners/0", "a/b"]
    assert list(short_names(names).values()) == ["winner-0.student", "winner-0.random", "winners/0", "a/b"]
    both = ["/x/one/model", "/y/one/model", "/x/one/winners/0", "/y/one/winners/0"]
    assert len(set(short_names(both).values())) == 4
    assert short_names(["/x/one", "/x/one/model"]) == {"/x/one": "/x/one", "/x/one/model": "/x/one/model"}
    assert short_names(["smollm2-135m", "./half"]) == {"smollm2-135m": "smollm2-135m", "./half": "half"}
    peer = {"name": "random twin of out/pretrain/w/model", "of": "out/pretrain/w/model"}
    assert names_of([{"name": "out/pretrain/w/model"}, peer])[peer["name"]] == "random twin of w"


def test_roles_are_marked():
    shown = rows_of(models_table(parse_evaluation(make_result())), 1)
    assert shown[TEACHER]["is the"] == f"teacher of {STUDENT}"
    assert shown["EleutherAI/pythia-70m"]["is the"] == f"published peer of {STUDENT}"
    assert shown[f"random twin of {STUDENT}"]["is the"] == f"random-init twin of {STUDENT}"
    assert shown[STUDENT]["is the"] == "–" and shown[STUDENT]["parameters"] == "67.2M"


def test_the_text_table_has_a_row_per_domain_and_model_with_intervals():
    run = parse_evaluation(make_result())
    shown = rows_of(text_table(run), 2)
    assert len(shown) == 2 * len(MODELS)
    row = shown["books", STUDENT]
    assert row["perplexity"] == "33.1" and row["95% interval"] == "30.6 to 35.8" and row["loss"] == "3.5000"
    assert row["bits per byte"] == "1.2963" and row["against the first"] == "–"
    assert shown["books", TEACHER]["against the first"] == "better"
    assert "text" not in text_table(parse_evaluation(make_result(domains=("books",)))).header


def test_the_task_table_marks_the_best_and_what_is_within_the_noise():
    result = make_result()
    for difference in result["differences"]:
        if difference["kind"] == "task":
            wide = difference["of"] == "piqa" and difference["model"] == TEACHER
            difference["verdict"] = "within the noise" if wide else "worse"
    run = parse_evaluation(result)
    table, strong = tasks_table(run)
    shown = rows_of(table, 1)
    assert list(shown) == ["ARC-Easy", "HellaSwag", "PIQA", "LAMBADA (OpenAI)", "BLiMP", "average of small"]
    assert shown["PIQA"][TEACHER].endswith("≈") and not shown["PIQA"][STUDENT].endswith("≈")
    assert shown["ARC-Easy"]["chance"] == "25.0" and shown["ARC-Easy"]["measured"] == "0-shot, 2.38K documents"
    best = table.header.index(TEACHER)
    assert strong == {(row, best) for row in range(6)}
    members, _ = tasks_table(run, members=True)
    assert [row[0] for row in members.rows] == ["BLiMP, anaphor agreement", "BLiMP, island effects"]


def test_the_average_of_a_suite_is_the_mean_of_its_tasks_and_not_of_a_groups_members():
    run = parse_evaluation(make_result())
    average = next(row for row in task_rows(run) if row.kind == "average")
    tasks = [row for row in task_rows(run) if row.kind in ("task", "group")]
    assert average.scores[0].value == pytest.approx(sum(row.scores[0].value for row in tasks) / 5)
    assert average.scores[0].stderr == pytest.approx(sum(row.scores[0].stderr ** 2 for row in tasks) ** 0.5 / 5)
    assert average.chance == pytest.approx(0.3)
    result = make_result()
    result["models"][1]["tasks"] = result["models"][1]["tasks"][1:]
    average = next(row for row in task_rows(parse_evaluation(result)) if row.kind == "average")
    assert average.scores[1] is None and average.scores[0] is not None


def test_a_task_whose_metric_is_better_when_less_is_left_out_of_the_average_and_the_picture():
    result = make_result(suites={"mine": ["arc_easy", "piqa", "wikitext"]})
    for model in result["models"]:
        metric = {"value": 40.0, "stderr": None, "interval": None, "better": "less"}
        model["tasks"].append({"task": "wikitext", "title": "WikiText", "main": "word_perplexity", "metrics":
                               {"word_perplexity": metric}, "chance": None})  # fmt: skip
    result["models"][2]["tasks"][-1]["metrics"]["word_perplexity"]["value"] = 20.0
    run = parse_evaluation(result)
    average = next(row for row in task_rows(run) if row.kind == "average")
    assert average.facts == "mean of 2 tasks, 1 of which less is better left out"
    row = next(row for row in task_rows(run) if row.name == "wikitext")
    assert row.best == {2}
    assert "WikiText" not in [group.name for group in task_intervals(run).groups]


def test_differences_say_their_interval_and_verdict():
    run = parse_evaluation(make_result())
    shown = rows_of(differences_table(run, "text"), 3)
    row = shown["books", "loss", TEACHER]
    assert row["difference"] == "-0.5000" and row["95% interval"] == "-0.5196 to -0.4804"
    assert row["so it is"] == "better"
    verdicts = {row[-1] for row in differences_table(run, "task").rows}
    assert verdicts == {"better", "worse", "within the noise"}


def test_only_the_metric_that_stands_for_a_task_is_compared():
    result = make_result()
    more = [d | {"quantity": "acc_norm"} for d in result["differences"] if d["kind"] == "task"]
    plain, both = parse_evaluation(result), parse_evaluation(result | {"differences": result["differences"] + more})
    assert differences_table(both, "task") == differences_table(plain, "task")


def test_peers_less_their_own_student_have_a_picture_of_their_own():
    result = make_result()
    second = MODELS[1][0]
    own = [d | {"to": second} for d in result["differences"] if d["kind"] == "text" and d["model"] == TEACHER]
    pictures = difference_intervals(parse_evaluation(result | {"differences": result["differences"] + own}))
    assert ["winner-0.random" in picture.label for picture in pictures] == [False, False, True]
    assert all(picture.zero for picture in pictures)


def test_generation_and_samples_are_side_by_side():
    run = parse_evaluation(make_result())
    shown = rows_of(generation_table(run), 1)
    assert shown["bleu"][STUDENT] == "12.00 (11.00 to 13.00)" and shown["bleu"]["better is"] == "more"
    assert shown["distinct 2"]["better is"] == "neither" and shown["repetition"][STUDENT] == "0.1500"
    samples = generation_samples(run)
    assert samples[0]["prompt"] == "Python is a" and samples[0]["reference"] == "a language"
    assert [name for name, _ in samples[0]["answers"]][:2] == [STUDENT, "winner-0.random"]


def test_efficiency_has_rates_latencies_and_what_is_not_known():
    run = parse_evaluation(make_result())
    row = rows_of(efficiency_table(run), 1)[STUDENT]
    assert row["weights"] == "256 MiB" and row["MFU, prefill"] == "41.0%" and row["energy/token"] == "not known"
    decode = speed_table(run, "decode")
    assert decode.header[3:] == ("tokens/s", "latency of a token, median", "90%", "99%", "slowest")
    assert decode.rows[0][2:6] == (STUDENT, "59.5", "16.8 ms", "20.2 ms")
    assert len(speed_table(run, "prefill").rows) == 2 * len(MODELS)


def test_the_pictures_hold_what_the_tables_hold():
    run = parse_evaluation(make_result())
    text = text_intervals(run)
    assert [group.name for group in text.groups] == ["python-docs", "books"] and len(text.groups[0].rows) == 6
    assert text.groups[0].rows[0].look == "first" and text.groups[0].rows[2].look == "teacher"
    tasks = task_intervals(run)
    assert tasks.groups[0].chance == 25.0 and len(tasks.groups) == 6
    scatter = scatter_data(run)
    assert scatter["xs"] == ["decode", "prefill", "params", "flops", "memory", "kv"]
    assert scatter["ys"] == ["text python-docs", "text books", "task small"]
    assert len(scatter["points"]) == 6


def test_the_page_is_whole_and_needs_nothing(tmp_path):
    page = evaluation_page(load_evaluation(evaluation_run(tmp_path)))
    tags = outline(page)
    assert tags.links == [] and "{{" not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert list(page_json(page)) == ["text", "tasks", "differences-0", "differences-1", "scatter"]
    kinds = [attrs["data-kind"] for tag, attrs in tags.tags if "data-figure" in attrs]
    assert kinds == ["intervals"] * 4 + ["scatter"]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in page


def test_names_and_texts_are_shown_and_never_run(tmp_path):
    result = make_result(command=EVIL, notes=[EVIL])
    result["models"][0] |= {"error": EVIL, "digest": EVIL}
    result["models"][1]["name"] = EVIL
    result["models"][0]["tasks"][0]["title"] = EVIL
    result["models"][0]["text"][0]["domain"] = EVIL
    result["models"][0]["generation"]["samples"][0] |= {"prompt": EVIL, "text": EVIL, "reference": EVIL}
    result["models"][0]["efficiency"]["notes"] = [EVIL]
    folder = evaluation_run(tmp_path, result)
    page = evaluation_page(load_evaluation(folder))
    assert page.count("<script") == 2 and "<img" not in page
    outline(page)
    text = re.sub(r"```.*?```", "", evaluation_markdown(load_evaluation(folder)), flags=re.DOTALL)
    assert "&lt;" not in text and not re.search(r"(?<!\\)<", text)
    assert [path.name for path in write_evaluation_report(folder)] == FILES


@pytest.mark.parametrize("gone", ["text", "tasks", "generation", "efficiency"])
def test_what_was_not_measured_is_left_out(tmp_path, gone):
    result = make_result()
    for model in result["models"]:
        model[gone] = [] if gone in ("text", "tasks") else None
    result["differences"] = [d for d in result["differences"] if d["kind"] != {"tasks": "task"}.get(gone, gone)]
    folder = evaluation_run(tmp_path, result)
    page = evaluation_page(load_evaluation(folder))
    outline(page)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    title = {"text": "Held-out text", "tasks": "Tasks", "generation": "Generation", "efficiency": "Efficiency"}[gone]
    assert title not in headings and len(headings) > 5
    assert "None" not in evaluation_text(result) and "nan" not in evaluation_text(result)


def test_a_model_that_failed_is_noted_and_the_others_are_shown(tmp_path):
    result = make_result()
    nothing = {"text": [], "tasks": [], "generation": None, "efficiency": None}
    result["models"][1] |= nothing | {"error": "it does not load"}
    run = load_evaluation(evaluation_run(tmp_path, result))
    assert "winner-0.random was not measured whole: it does not load" in run.notes
    outline(evaluation_page(run))
    assert "it does not load" in evaluation_text(result)


def test_an_unfinished_evaluation_is_shown_from_its_parts(tmp_path, capsys):
    folder = unfinished_evaluation(tmp_path / "e")
    (folder / "models/model-0/task-arc_easy-00.json").write_text('{"task": "arc')
    assert run_command(main, [str(folder)]) == 0
    said = capsys.readouterr().err
    assert "has not finished" in said and "9 parts" in said and "arc_easy-00.json is not valid JSON" in said
    run = load_evaluation(folder)
    assert [model.short for model in run.models] == [STUDENT, "winner-0.random"]
    assert run.models[0].text("books").loss.value == pytest.approx(3.5)
    assert [score.name for score in run.models[1].tasks] == ["arc_easy", "hellaswag"] and run.models[1].generation
    outline((folder / "report.html").read_text())


def test_an_older_format_gets_a_note(tmp_path):
    folder = evaluation_run(tmp_path, make_result() | {"format": 1})
    run = load_evaluation(folder)
    assert len(run.notes) == 1 and "format 1" in run.notes[0] and "evaluate again" in run.notes[0]
    outline(evaluation_page(run))


@pytest.mark.parametrize("damage", [{"models": None}, {"models": [3, {}]}, {"differences": [{}], "suites": []},
                                    {"models": [{"name": "a", "text": [{"loss": "x"}], "tasks": [{"metrics": [1]}]}]},
                                    {"config": None, "environment": None, "spent": None, "notes": None}])  # fmt: skip
def test_records_of_an_unexpected_form_do_not_stop_the_reading(tmp_path, damage):
    folder = evaluation_run(tmp_path)
    (folder / "evaluate.json").write_text(json.dumps(make_result() | damage))
    outline(evaluation_page(load_evaluation(folder)))
    draw_evaluation(load_evaluation(folder))


def test_a_folder_without_an_evaluation_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no evaluation") as caught:
        load_evaluation(tmp_path)
    assert "\n" not in str(caught.value)


def test_markdown_has_every_section_and_bold_bests(tmp_path):
    text = evaluation_markdown(load_evaluation(evaluation_run(tmp_path)))
    for title in ("The models", "Held-out text", "Tasks", f"Against {STUDENT}", "Generation", "Efficiency",
                  "What was spent", "How to reproduce", "Environment"):  # fmt: skip
        assert f"## {title}" in text
    assert "(evaluation.png)" in text and "**79.3 ± 0.8" in text and "*reference:* a language" in text


def test_the_text_for_a_terminal_has_everything_in_columns():
    text = evaluation_text(make_result())
    for wanted in ("33.1", "30.6 to 35.8", "ARC-Easy", "average of small", "bleu", "latency of a token", "note:"):
        assert wanted in text
    assert "island effects" not in text  # the group stands for it
    assert evaluation_text({}) == "Nothing was measured."


def test_a_rebuilt_report_is_the_same(tmp_path):
    folder = evaluation_run(tmp_path)
    first = [path.read_bytes() for path in write_evaluation_report(folder)]
    assert [path.read_bytes() for path in write_evaluation_report(folder)] == first
