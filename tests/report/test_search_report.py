import csv
import io
import time

import pytest

from slm_ray.records.base import write_record
from slm_ray.report.command import main
from slm_ray.report.kinds import load_run
from slm_ray.report.render import markdown_of, page_of
from slm_ray.report.search import (
    baseline_table,
    beside,
    comparisons,
    cost_table,
    front_csv,
    front_table,
    load_search,
    phases,
    progress_table,
)
from slm_ray.report.search_charts import front_axes, front_picture, shape_picture
from slm_ray.report.search_report import build_report, search_report, summary_text
from slm_ray.report.text import load_code
from slm_ray.runtime.commands import run_command
from tests.report.made_search import (
    ENVIRONMENT,
    HIGH,
    LOW,
    OPTIONS,
    TEACHER_PARAMS,
    finished_search,
    fitted,
    make_result,
    make_trials,
    write_search,
)
from tests.report.pages import EVIL, outline, pictures, rows_of

FILES = ["front.csv", "front.png", "report.md", "report.html"]


def page(run):
    return page_of(search_report(run))


def markdown(run):
    return markdown_of(search_report(run))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load_search(finished_search(tmp_path_factory.mktemp("search")))


def changed(folder, change, count=60):
    """A search whose result is changed before it is written."""
    trials = make_trials(count)
    result = make_result(trials)
    change(result)
    return load_search(write_search(folder, trials, result))


def test_an_unfinished_run_has_a_provisional_front_and_says_so(tmp_path):
    trials = make_trials(40)
    found = load_search(write_search(tmp_path, trials, None))
    assert not found.finished and found.teacher is None and "has not finished" in found.notes[0]
    full = [t for t in trials if t["decided"] == "full"]
    for member in found.front:
        better = [t for t in full if t["cost"]["params"] <= member.params
                  and t["measurements"]["perplexity"]["value"] < member.perplexity]  # fmt: skip
        assert not better
    assert front_table(found).title == "The front so far" and "best so far" in summary_text(found).lower()
    assert f"Next: slm-ray search --resume {tmp_path}" in summary_text(found)
    outline(page(found))


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("result.json", '{"version": 1}', "schema version 1"), ("result.json", '{"version": 2}', "is damaged (command"),
        ("config.json", "{", "config.json"),
    ],
)  # fmt: skip
def test_damaged_files_are_a_sentence_each_and_the_rest_is_shown(tmp_path, file, content, note):
    folder = finished_search(tmp_path, 20)
    (folder / file).write_text(content)
    found = load_run(folder)
    assert any(note in said and "\n" not in said for said in found.records.notes)
    assert found.kind == "search" and len(found.records.candidates) == 20
    outline(page(found.records))


def test_the_tables_hold_what_was_recorded(run):
    front = front_table(run)
    first = dict(zip(front.header, front.rows[0], strict=True))
    assert first["winner"] == "0" and first["parameters"] == "93.7M" and first["of teacher"] == "69.7%"
    assert first["layers"].endswith(" of 30") and first["weights"].endswith("MiB, float32") and 0 in front.marked
    compared = {row[0]: row for row in baseline_table(run).rows}
    assert list(compared)[:2] == ["smollm2-135m", "winner 0"] and compared["first-n"][-1].endswith("× worse")
    assert beside(run, run.baselines[0]) == "first-n, same size"
    assert all(verdict.endswith("× worse") for _, _, verdict in comparisons(run))
    assert phases(run)[1] == ("text", 3.0)
    cost = dict(cost_table(run).rows)
    assert cost["time in all"] == "3 min 22 s" and cost["FLOPs"] == "12T"
    assert cost["candidates"] == "162 candidates (2 failed, 3 proposed again and not paid for twice)"
    assert progress_table(run).rows[0] == ("16", "23 s", "0.1451")


def test_a_difference_inside_the_noise_is_called_so(tmp_path):
    def same(result):
        best = next(entry for entry in result["front"] if entry["winner"] == 0)
        result["baselines"][2] |= {"held_out_perplexity": 1.01 * best["held_out_perplexity"], "held_out_stderr": 5.0}

    found = changed(tmp_path, same)
    assert comparisons(found)[2][2] == "within the noise" and "within the noise" in summary_text(found)


def test_the_csv_has_full_precision(run):
    rows = list(csv.DictReader(io.StringIO(front_csv(run))))
    assert len(rows) == len(run.front)
    best = next(row for row in rows if row["winner"] == "0")
    assert float(best["held_out_perplexity"]) == run.best.held_out_perplexity
    assert float(best["share_of_teacher"]) == run.best.params / TEACHER_PARAMS
    assert tuple(map(int, best["intermediate_size"].split())) == run.best.architecture.intermediate_size


def test_the_picture_of_the_front(run):
    picture, left_out = front_picture(run)
    (view,) = picture.views
    points = {row["series"]: row for row in view.rows["points"]}
    assert set(points) == {"front", "teacher", "first-n", "random", "importance"}
    x, y = front_axes(run)
    assert all(row["y"] <= y.high for row in view.rows["points"])
    assert points["random"]["y"] > points["first-n"]["y"] > points["importance"]["y"]  # in rows at the top edge
    assert any(row["text"].startswith("↑ random") for row in view.rows["labels"])
    assert view.rows["zone"] == [{"low": LOW, "high": HIGH}] and x.title == "Parameters"
    drawn = {row["tip"].splitlines()[0] for row in view.rows["cloud"]}
    assert not drawn & {member.name for member in run.front}
    above = 160 - len(run.front) - len(view.rows["cloud"])
    assert (left_out == "") == (above == 0)
    assert "held-out perplexity" in points["teacher"]["tip"] and "30 layers" in points["teacher"]["tip"]


def test_exported_weights_are_in_the_picture_the_summary_and_the_page(tmp_path):
    def fit(result):
        for entry in result["front"]:
            entry["reconstruction"] = fitted(26.4, 0.7, kept=entry["winner"] == 0)

    found = changed(tmp_path, fit)
    (row,) = [row for row in front_picture(found)[0].views[0].rows["points"] if row["series"].startswith("weights")]
    assert (row["x"], row["y"]) == (found.best.params, 26.4)
    assert "with fitted weights 26.4 ± 0.7, 1.37× the teacher's" in row["tip"]
    text, shown = summary_text(found), markdown(found)
    assert "with fitted weights" in text and "fitted on 16,384 train tokens: the exported weights" in text
    assert "weights fitted on 16,384 train tokens" in shown and "with the teacher's own weights" in shown
    assert "As it was exported, with fitted weights and before any training, its perplexity on held-out" in shown
    assert "<dt>Perplexity</dt><dd><b>26.4 ± 0.7</b>" in page(found)


def test_the_layers_of_any_model_of_the_front_can_be_chosen(run):
    heads, neurons = shape_picture(run).views
    spec = heads.spec("container")
    (chosen,) = [param for param in spec["params"] if param["name"] == "model"]
    assert chosen["value"].startswith("winner 0 (trial ") and chosen["value"] in chosen["bind"]["options"]
    mine = [row for row in heads.rows["rows"] if row["model"] == chosen["value"]]
    assert [row["heads"] for row in mine] == list(run.best.architecture.num_attention_heads)
    assert {row["heads"] for row in heads.rows["whole"]} == {9} and len(heads.rows["whole"]) == 30
    assert neurons.rows["rows"] is heads.rows["rows"] and {row["neurons"] for row in neurons.rows["whole"]} == {1536}


def test_another_objective_is_the_horizontal_axis(tmp_path):
    found = load_search(finished_search(tmp_path, objectives=["kl", "kv_bytes"]))
    assert found.quantity == "kv_bytes" and not front_picture(found)[0].views[0].rows["zone"]


@pytest.mark.parametrize(
    ("count", "changes"),
    [(0, {}), (1, {}), (30, {"front": []}), (30, {"baselines": [], "hypervolume": []}), (30, {"winners": []})],
)
def test_the_report_is_whole_whatever_is_missing(tmp_path, count, changes):
    trials = make_trials(count, num_failed=2)
    folder = write_search(tmp_path, trials, make_result(trials, **changes))
    build_report(folder)
    outline((folder / "report.html").read_text())
    assert "None" not in (folder / "report.md").read_text() and "None" not in summary_text(load_search(folder))


def test_names_are_shown_and_never_run(tmp_path):
    trials = make_trials(12)
    result = make_result(trials, command=EVIL)
    result["teacher"]["name"] = result["baselines"][0]["name"] = EVIL
    folder = write_search(tmp_path, trials, result, {**OPTIONS, "space": EVIL, EVIL: EVIL}, command=EVIL)
    write_record(folder, ENVIRONMENT.model_copy(update={"cpu": EVIL, "packages": {EVIL: EVIL}}))
    build_report(folder)
    shown = (folder / "report.html").read_text()
    outline(shown)
    points = rows_of(pictures(shown)["front"][0], "points")
    assert any(EVIL in row["tip"] for row in points) and "{{ 7 * 7 }}" in shown
    outside = "".join((folder / "report.md").read_text().split("```")[::2])
    assert "<script" not in outside.replace("\\<script", "")


def test_secrets_reach_no_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    found = load_search(finished_search(tmp_path, 20, command="search --key very-secret-value"))
    assert "very-secret-value" not in markdown(found) + page(found)


def test_the_markdown_has_every_part(run):
    text = markdown(run)
    assert "![Perplexity against size: candidates, front, teacher and baselines](front.png)" in text
    for title in ("## The front", "### The front as a table", "## What was spent", "### Search progress as a table",
                  "### Environment", "### Config", "## How to reproduce"):  # fmt: skip
        assert f"\n{title}\n" in text
    assert "\n\n\n" not in text and "| winner | trial | parameters |" in text
    found = pictures(page(run))
    assert list(found) == ["front", "front-shape", "baselines", "progress"]
    assert len(rows_of(found["progress"][0])) == 10


def test_a_ruined_winner_is_called_noise_and_its_training_is_proposed(tmp_path, run):
    def ruin(result):
        for entry in result["front"]:
            entry["held_out_perplexity"] *= 272

    found = changed(tmp_path, ruin)
    text = summary_text(found)
    assert "writes noise until it is trained" in text and "writes noise" in markdown(found)
    assert "slm-ray pretrain --student" in text and "noise until" not in summary_text(run)


def test_loading_code_is_python_even_for_odd_paths(tmp_path):
    compile(load_code("a 'b' \"c\" \\d", True), "card", "exec")
    folder = finished_search(tmp_path, 20)
    assert "trust_remote_code=True" in markdown(load_search(folder))
    (folder / "winners/0").mkdir(parents=True)
    (folder / "winners/0/config.json").write_text("{}")
    assert "trust_remote_code" not in markdown(load_search(folder))


def test_another_text_has_a_table_and_a_line(tmp_path):
    def other(result):
        result["corpus"]["other"] = {"name": "books", "tokens": 4096}
        result["teacher"] |= {"other_perplexity": 30.0}
        best = next(entry for entry in result["front"] if entry["winner"] == 0)
        best |= {"other_perplexity": 90.0, "other_stderr": 1.0}

    found = changed(tmp_path, other)
    assert baseline_table(found).rows[1][-2:] == ("90.0 ± 1.0", "3.00×")
    assert "On books, 4,096 tokens: 90.0 ± 1.0, 3.00× of the teacher's" in summary_text(found)


def test_finalists_are_in_a_table(tmp_path):
    def train(result):
        result["front"][0]["short_training"] = {"tokens": 2048, "loss": 4.0, "first_loss": 5.0, "flops": 1.0,
                                                "seconds": 1.0}  # fmt: skip

    assert "4.0000 | 5.0000 | 2.05K" in markdown(changed(tmp_path, train))


def test_a_rebuilt_report_is_the_same_and_quick(tmp_path):
    folder = finished_search(tmp_path, 1200)
    first = [path.read_bytes() for path in build_report(folder)]
    start = time.process_time()
    assert [path.read_bytes() for path in build_report(folder)] == first and time.process_time() - start < 5
    assert (folder / "report.html").stat().st_size < 1.5e6
    assert "left out of the picture, evenly" in (folder / "report.md").read_text()


def test_the_command_writes_every_run_and_prints_the_paths(tmp_path, capsys):
    folders = [finished_search(tmp_path / "a", 20), write_search(tmp_path / "b", make_trials(5), None)]
    assert run_command(main, [str(folder) for folder in folders]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(folder / name) for folder in folders for name in FILES]
    assert output.err.count("note: ") == 1 and "has not finished" in output.err
    assert all((folder / "front.png").read_bytes().startswith(b"\x89PNG") for folder in folders)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["{tmp}/nowhere"], "is missing"), (["{tmp}"], "holds no run"), (["x", "--debgu"], "--debug")],
)
def test_a_mistake_is_one_sentence_and_exit_2(tmp_path, capsys, arguments, said):
    assert run_command(main, [argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_nothing_is_written_when_one_folder_is_wrong_and_a_blocked_file_is_named(tmp_path, capsys):
    folder = finished_search(tmp_path / "a", 10)
    assert run_command(main, [str(folder), str(tmp_path / "b")]) == 2
    assert not (folder / "report.html").exists()
    (folder / "report.html").mkdir()
    assert run_command(main, [str(folder)]) == 2
    assert "report.html: it is a folder" in capsys.readouterr().err
