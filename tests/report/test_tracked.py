import json
from pathlib import Path

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records import metric_names as names
from slm_ray.report.build import build_report, build_training_report
from slm_ray.report.tracked import results_of, send_results
from slm_ray.runtime.trackers import JsonlTracker, NoTracker
from tests.report.synthetic_evaluation import evaluation
from tests.report.synthetic_run import finished_run, make_trials, write_run
from tests.report.synthetic_training import training_run


class Seen(NoTracker):
    """Keeps what it is sent."""

    def __init__(self):
        self.tables, self.images, self.values = {}, {}, {}

    def table(self, name, columns, rows):
        assert rows and all(len(row) == len(columns) for row in rows)
        self.tables[name] = [dict(zip(columns, row, strict=True)) for row in rows]

    def image(self, name, path):
        self.images[name] = Path(path).name

    def summary(self, values):
        self.values |= values

    def check(self):
        """Everything sent has a name that the dashboard may use."""
        assert all(names.is_tracked(name) for name in (*self.tables, *self.images, *self.values))
        return self


def sent(folder):
    seen = Seen()
    send_results(seen, folder)
    return seen.check()


def evaluation_folder(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluate.json").write_text(json.dumps(evaluation()))
    return folder


def test_a_search_sends_its_front_its_picture_and_what_it_came_to(tmp_path):
    folder = finished_run(tmp_path / "run")
    build_report(folder)
    seen = sent(folder)
    assert set(seen.tables) == {names.FRONT_TABLE, names.BASELINE_TABLE, names.HYPERVOLUME_TABLE, names.COST_TABLE}
    assert seen.images == {names.FRONT_PICTURE: "front.png"}
    result = json.loads((folder / "result.json").read_text())
    front = {row["trial"]: row for row in seen.tables[names.FRONT_TABLE]}
    assert {entry["trial"] for entry in result["front"]} == set(front)
    winner = next(entry for entry in result["front"] if entry["winner"] == 0)
    assert front[winner["trial"]]["held_out_perplexity"] == winner["held_out_perplexity"]
    assert front[winner["trial"]]["times_teacher"] == pytest.approx(winner["held_out_perplexity"] / 19.3)
    assert seen.values[names.RESULT_PERPLEXITY] == winner["held_out_perplexity"]
    assert seen.values[names.RESULT_FLOPS] == 1.2e13
    assert seen.tables[names.BASELINE_TABLE][0]["model"] == "smollm2-135m"
    last = result["hypervolume"][-1]
    assert seen.tables[names.HYPERVOLUME_TABLE][-1] == {
        "evaluations": last["evaluations"], "seconds": last["seconds"], "hypervolume": last["value"],
    }  # fmt: skip


def test_a_pretraining_sends_its_models_their_curves_and_the_match(tmp_path):
    folder = training_run(tmp_path / "run")
    build_training_report(folder)
    seen = sent(folder)
    assert seen.images == {names.TRAINING_PICTURE: "training.png"}
    student = next(row for row in seen.tables[names.MODELS_TABLE] if row["start"] == "student")
    assert student["state"] == "done" and student["params"] == 67_238_208 and student["search_flops"] == 65e12
    assert seen.values[names.RESULT_LOSS] == student["last_loss"]
    assert len(seen.tables[names.CURVES_TABLE]) == 33 and len(seen.tables[names.MATCHING_TABLE]) == 9
    assert {row["model"] for row in seen.tables[names.EQUAL_FLOPS_TABLE]} == {
        "winner-0.student", "winner-0.random", "winner-0.first-n",
    }  # fmt: skip


def test_an_evaluation_sends_every_figure_with_its_interval(tmp_path):
    seen = sent(evaluation_folder(tmp_path / "run"))
    texts = {row["model"]: row for row in seen.tables[names.TEXT_TABLE]}
    assert texts["winner-0"]["perplexity_low"] == 28.0 and texts["winner-0"]["perplexity_high"] == 32.0
    task = next(row for row in seen.tables[names.TASKS_TABLE] if row["model"] == "org/teacher" and row["is_main"])
    assert (task["metric"], task["value"], task["low"], task["high"]) == ("acc_norm", 0.6, 0.5, 0.7)
    assert seen.tables[names.DIFFERENCES_TABLE][0]["verdict"] == "within the noise"
    assert seen.tables[names.SAMPLES_TABLE][0]["text"] == "there was"
    assert {row["metric"] for row in seen.tables[names.GENERATION_TABLE]} == {"bleu", "repetition"}
    assert seen.tables[names.EFFICIENCY_TABLE][0]["kv_bytes_per_token"] == 23040
    assert {row["phase"] for row in seen.tables[names.SPEED_TABLE]} == {"prefill", "decode"}
    assert seen.values[names.RESULT_PERPLEXITY] == 30.0
    assert seen.values[names.RESULT_TASKS] == pytest.approx(0.55)
    assert seen.values[names.RESULT_TASK + "piqa"] == 0.6 and seen.values[names.RESULT_DECODE] == 30.0


def test_a_pipeline_sends_what_its_stages_found(tmp_path):
    finished_run(tmp_path / "search")
    training_run(tmp_path / "pretrain")
    evaluation_folder(tmp_path / "evaluate")
    (tmp_path / "pipeline.json").write_text(json.dumps({"stages": {}}))
    assert {names.FRONT_TABLE, names.MODELS_TABLE, names.TASKS_TABLE} <= set(sent(tmp_path).tables)


def test_an_unfinished_run_sends_what_there_is(tmp_path):
    search = sent(write_run(tmp_path / "search", make_trials(5), None))
    assert search.tables[names.FRONT_TABLE] and names.HYPERVOLUME_TABLE not in search.tables and not search.images
    training = sent(training_run(tmp_path / "pretrain", finished=False))
    assert {row["state"] for row in training.tables[names.MODELS_TABLE]} == {"unfinished"}


def test_a_sparse_evaluation_sends_what_there_is(tmp_path):
    folder = evaluation_folder(tmp_path / "run")
    broken = {"name": "a", "error": "it does not load"}
    for left in ({"models": []}, {"models": [broken]}, {"models": [None], "notes": 3}):
        (folder / "evaluate.json").write_text(json.dumps({"format": 2, **left}))
        assert not sent(folder).tables


def test_nothing_is_read_for_a_tracker_that_keeps_nothing(tmp_path):
    send_results(NoTracker(), tmp_path / "nowhere")
    with pytest.raises(UserError, match="is missing"):
        list(results_of(tmp_path / "nowhere"))


def test_lines_of_json_keep_the_summary(tmp_path):
    folder = finished_run(tmp_path / "run")
    tracker = JsonlTracker(folder, pytest.fail)
    send_results(tracker, folder)
    tracker.finish()
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)[names.RESULT_SECONDS] > 0
