from pathlib import Path

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records import metric_names as names
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.report.search import load_search
from slm_ray.report.search_report import build_report
from slm_ray.report.tracked import results_of, send_results
from slm_ray.runtime.trackers import NoTracker
from tests.report.made_evaluation import MODELS, evaluation_run, make_result
from tests.report.made_others import pipeline_run
from tests.report.made_search import finished_search, make_trials, write_search
from tests.report.made_training import training_run


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


def sent(folder):
    seen = Seen()
    send_results(seen, folder)
    # Everything sent has a name that the dashboard may use.
    assert all(names.is_tracked(name) for name in (*seen.tables, *seen.images, *seen.values))
    return seen


def test_a_search_sends_its_front_its_picture_and_what_it_came_to(tmp_path):
    folder = finished_search(tmp_path / "run")
    build_report(folder)
    seen, run = sent(folder), load_search(folder)
    assert set(seen.tables) == {names.FRONT_TABLE, names.BASELINE_TABLE, names.HYPERVOLUME_TABLE, names.COST_TABLE}
    assert seen.images == {names.FRONT_PICTURE: "front.png"}
    front = {row["trial"]: row for row in seen.tables[names.FRONT_TABLE]}
    assert set(front) == {member.trial for member in run.front}
    best = front[run.best.trial]
    assert best["held_out_perplexity"] == run.best.held_out_perplexity == seen.values[names.RESULT_PERPLEXITY]
    assert best["ratio_to_teacher"] == pytest.approx(run.best.held_out_perplexity / 19.3)
    assert seen.values[names.RESULT_FLOPS] == 1.2e13 and seen.values[names.RESULT_SECONDS] > 0
    assert seen.tables[names.BASELINE_TABLE][0]["model"] == "smollm2-135m"
    assert seen.tables[names.HYPERVOLUME_TABLE][-1]["hypervolume"] == run.result.hypervolume[-1].value


def test_a_pretraining_sends_its_models_their_curves_and_the_match(tmp_path):
    seen = sent(training_run(tmp_path / "run"))
    student = next(row for row in seen.tables[names.MODELS_TABLE] if row["start"] == "student")
    assert student["state"] == "done" and student["params"] == 67_238_208 and student["search_flops"] == 65e12
    assert seen.values[names.RESULT_LOSS] == student["last_loss"] and not seen.images
    assert len(seen.tables[names.CURVES_TABLE]) == 33 and len(seen.tables[names.MATCHING_TABLE]) == 9
    assert len(seen.tables[names.EQUAL_FLOPS_TABLE]) == 3


def test_an_evaluation_sends_every_figure_with_its_interval(tmp_path):
    folder = evaluation_run(tmp_path / "run")
    seen, first = sent(folder), EvaluationResult.model_validate(make_result()).models[0]
    text = seen.tables[names.TEXT_TABLE][0]
    assert (text["model"], text["domain"]) == ("winner-0.student", "python-docs")
    assert text["perplexity"] == first.text[0].perplexity
    assert (text["perplexity_low"], text["perplexity_high"]) == first.text[0].perplexity_interval
    task = next(row for row in seen.tables[names.TASKS_TABLE] if row["model"] == "smollm2-135m" and row["is_main"])
    assert (task["metric"], task["better"]) == ("acc", "more") and task["low"] < task["value"] < task["high"]
    assert seen.tables[names.DIFFERENCES_TABLE][0]["to"] == "winner-0.student"
    assert seen.tables[names.SAMPLES_TABLE][0]["reference"] == "a language"
    assert {row["metric"] for row in seen.tables[names.GENERATION_TABLE]} == {"bleu", "repetition", "distinct_2"}
    assert seen.tables[names.EFFICIENCY_TABLE][0]["kv_bytes_per_token"] == 67_238_208 // 5000
    assert len(seen.tables[names.SPEED_TABLE]) == 3 * len(MODELS)
    assert seen.values[names.RESULT_PERPLEXITY] == first.text[0].perplexity
    single = [task.metrics["acc"].value for task in first.tasks if task.members is None]
    assert seen.values[names.RESULT_TASKS] == pytest.approx(sum(single) / len(single))
    assert seen.values[names.RESULT_DECODE] == first.efficiency.decode[0].tokens_per_second


def test_a_pipeline_sends_what_its_stages_found(tmp_path):
    assert {names.FRONT_TABLE, names.MODELS_TABLE, names.TASKS_TABLE} <= set(sent(pipeline_run(tmp_path)).tables)


def test_unfinished_runs_send_what_there_is(tmp_path):
    search = sent(write_search(tmp_path / "search", make_trials(5), None))
    assert search.tables[names.FRONT_TABLE] and names.HYPERVOLUME_TABLE not in search.tables and not search.images
    training = sent(training_run(tmp_path / "pretrain", finished=False))
    assert {row["state"] for row in training.tables[names.MODELS_TABLE]} == {"unfinished"}
    broken = [{"name": "a", "error": "it does not load"}]
    for models in ([], broken):
        folder = evaluation_run(tmp_path / f"e{len(models)}", make_result(models=models, differences=[]))
        assert not sent(folder).tables


def test_nothing_is_read_for_a_tracker_that_keeps_nothing(tmp_path):
    send_results(NoTracker(), tmp_path / "nowhere")
    with pytest.raises(UserError, match="is missing"):
        list(results_of(tmp_path / "nowhere"))
