import json
from pathlib import Path

import pytest
from synthetic_run import CONFIG, finished_run, make_result, make_trials, write_run

from slm_ray.config.errors import UserError
from slm_ray.report import load_run, parse_run


def test_a_finished_run_is_read_whole(tmp_path):
    run = load_run(finished_run(tmp_path / "run"))
    assert run.finished and run.notes == ()
    assert run.teacher.name == "smollm2-135m" and run.teacher.shape.num_layers == 30
    assert run.num_failed == 2 and len(run.candidates) == 160
    assert [model.winner for model in run.front if model.winner is not None] == [2, 1, 0]
    assert run.best.winner == 0 and run.winner_folder(run.best) == "winners/0"
    assert run.winners == {0: "winners/0", 1: "winners/1", 2: "winners/2"}
    sizes = [model.params for model in run.front]
    assert sizes == sorted(sizes)


def test_baseline_trials_are_no_candidates(tmp_path):
    trials = make_trials(5)
    trials[2]["origin"] = "baseline:random"
    run = load_run(write_run(tmp_path, trials, make_result(trials)))
    assert [model.trial for model in run.candidates] == [0, 1, 3, 4]


def test_an_unfinished_run_has_a_provisional_front_and_says_so(tmp_path):
    trials = make_trials(40)
    for trial in trials[20:]:
        trial["decided"] = "dominated"
    run = load_run(write_run(tmp_path, trials, None))
    assert not run.finished and run.teacher is None
    assert len(run.notes) == 1 and "has not finished" in run.notes[0] and "--resume" in run.notes[0]
    assert run.front and all(model.trial < 20 for model in run.front)
    for model in run.front:
        others = [m for m in run.candidates if m.trial < 20 and m is not model]
        assert not any(m.params <= model.params and m.perplexity <= model.perplexity for m in others)


def test_a_torn_last_line_is_passed_over(tmp_path):
    folder = write_run(tmp_path, make_trials(6), None)
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"trial": 6, "status": "do')
    assert len(load_run(folder).candidates) == 6


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    folder = write_run(tmp_path, make_trials(6), None)
    lines = (folder / "trials.jsonl").read_text().splitlines()
    lines[2] = "damaged"
    (folder / "trials.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "environment.json").unlink()
    (folder / "result.json").write_text('{"front": [')
    run = load_run(folder)
    assert len(run.candidates) == 5 and run.environment == {} and not run.finished
    assert any("line 3" in note for note in run.notes)
    assert any("result.json is not valid JSON" in note for note in run.notes)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1, 0, "33", True])
def test_a_perplexity_that_is_none_is_missing(tmp_path, value):
    trials = make_trials(8)
    result = make_result(trials)
    result["front"][0]["held_out_perplexity"] = value
    result["teacher"]["held_out_perplexity"] = value
    run = load_run(write_run(tmp_path, trials, result))
    expected = 1 if value is True else None
    assert run.teacher.held_out_perplexity is (None if expected == 1 else expected)
    assert run.front[0].perplexity == run.front[0].calibration_perplexity


def test_records_of_an_unexpected_form_do_not_stop_the_reading(tmp_path):
    result = {
        "front": [{"architecture": {"hidden_size": "x"}, "cost": None}, 5],
        "budget": 3,
        "spent": [],
        "teacher": None,
    }
    trials = [{}, {"status": "done", "measurements": None, "architecture": {"num_attention_heads": [1, 2]}}]
    run = load_run(write_run(tmp_path, trials, result))
    assert len(run.front) == 1 and run.front[0].shape is None and run.budget is None and run.teacher is None


@pytest.mark.parametrize("make", ["missing", "file", "empty"])
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, make):
    path = tmp_path / "x"
    if make == "file":
        path.write_text("")
    if make == "empty":
        path.mkdir()
    with pytest.raises(UserError, match="give the folder") as caught:
        load_run(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_parts_in_memory_give_what_the_files_give(tmp_path):
    folder = finished_run(tmp_path / "run", 20)
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    environment = json.loads((folder / "environment.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    parsed = parse_run(Path(folder), config=CONFIG, environment=environment, trials=trials, result=result)
    assert parsed == load_run(folder)
