import csv
import io

import pytest
from synthetic_run import finished_run, make_result, make_trials, write_run

from slm_ray.report import load_run
from slm_ray.report.table_file import front_csv
from slm_ray.report.tables import baseline_table, beside, comparisons, cost_table, front_table, phases, progress_table
from slm_ray.report.wording import differs, interval_text, perplexity_text, range_text, ratio_text, share_text


def result_with(tmp_path, **changes):
    trials = make_trials(12)
    return load_run(write_run(tmp_path, trials, make_result(trials, **changes)))


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (None, None, "–"),
        (1.234, None, "1.23"),
        (33.21, 0.91, "33.2 ± 0.9"),
        (33.21, 0.01, "33.2 ± 0.01"),
        (90123.4, 800.2, "90,123 ± 800"),
        (1.23e12, 3e10, "1.2e+12 ± 3e+10"),
    ],
)
def test_perplexities_are_written_in_few_figures(value, stderr, text):
    assert perplexity_text(value, stderr) == text


def test_other_figures():
    assert ratio_text(90123, 19.3) == "4,670×" and ratio_text(33.2, 19.3) == "1.72×" and ratio_text(None, 2) == "–"
    assert share_text(1, 4) == "25.0%" and share_text(1, None) == "–"
    assert interval_text(100.0, 10.0) == "80.4 to 120" and interval_text(100.0, None) == "–"
    assert range_text((3, 9, 6)) == "3–9" and range_text((4, 4)) == "4"


def test_a_difference_must_be_larger_than_the_noise():
    assert differs(30.0, 1.0, 40.0, 1.0) is True
    assert differs(30.0, 1.0, 31.0, 1.0) is False
    assert differs(30.0, None, 31.0, 1.0) is None
    assert differs(21.0, 5.0, 1.6e7, 0.9e7) is True  # a ruined model's wide interval is wide on the log scale only


def test_front_rows_are_the_largest_first_with_ratios_to_the_teacher(tmp_path):
    run = load_run(finished_run(tmp_path))
    table = front_table(run)
    assert len(table.rows) == len(run.front)
    row = dict(zip(table.header, table.rows[0], strict=True))
    best = run.best
    assert row["winner"] == "0" and row["trial"] == str(best.trial)
    assert row["of teacher"] == f"{100 * best.params / run.teacher.params:.1f}%"
    assert row["× teacher"] == f"{best.held_out_perplexity / 19.3:.2f}×"
    assert row["layers"] == f"{best.shape.num_layers} of 30"


def test_columns_that_say_nothing_are_left_out(tmp_path):
    run = load_run(write_run(tmp_path, make_trials(20), None))
    table = front_table(run)
    assert "winner" not in table.header and "calibration perplexity" in table.header
    assert table.title == "The front so far"


def test_baselines_beside_the_winner(tmp_path):
    run = load_run(finished_run(tmp_path))
    rows = {row[0]: row for row in baseline_table(run).rows}
    assert set(rows) == {"smollm2-135m", "winner 0", "first-n", "random", "importance"}
    assert rows["first-n"][-1].endswith("× worse")
    assert [item.model.name for item in comparisons(run)] == ["first-n", "random", "importance"]
    assert beside(run, run.baselines[0]) == "first-n, same size"


def test_a_better_baseline_and_one_within_the_noise_are_called_so(tmp_path):
    base = {"architecture": None, "cost": {"params": 5e7}}
    near = {**base, "name": "near", "held_out_perplexity": None, "held_out_stderr": 5.0}
    better = {**base, "name": "better", "held_out_perplexity": 10.0, "held_out_stderr": 0.1}
    unknown = {**base, "name": "unknown", "held_out_perplexity": 1000.0, "held_out_stderr": None}
    trials = make_trials(12)
    result = make_result(trials)
    near["held_out_perplexity"] = 1.01 * next(e for e in result["front"] if e["winner"] == 0)["held_out_perplexity"]
    run = load_run(write_run(tmp_path, trials, {**result, "baselines": [near, better, unknown]}))
    last = {row[0]: row[-1] for row in baseline_table(run).rows}
    assert last["near"] == "within the noise" and last["better"].endswith("× better")
    assert last["unknown"].endswith("× worse")
    assert "same size" not in beside(run, run.baselines[0])


def test_costs_and_progress(tmp_path):
    run = load_run(finished_run(tmp_path))
    rows = dict(cost_table(run).rows)
    assert rows["time in all"] == "3 min 22 s" and rows["FLOPs"] == "12T"
    assert "2 failed, 3 met again" in rows["candidates"]
    assert dict(phases(run))["text"] == 3.0
    assert len(progress_table(run).rows) == 10


@pytest.mark.parametrize(
    "changes", [{"spent": {}}, {"baselines": []}, {"teacher": None}, {"front": []}, {"hypervolume": None}]
)
def test_missing_parts_give_shorter_tables(tmp_path, changes):
    run = result_with(tmp_path, **changes)
    for table in (front_table(run), baseline_table(run), cost_table(run), progress_table(run)):
        assert all(len(row) == len(table.header) for row in table.rows)


def test_the_csv_holds_full_precision_and_reads_back(tmp_path):
    run = load_run(finished_run(tmp_path))
    rows = list(csv.DictReader(io.StringIO(front_csv(run))))
    assert len(rows) == len(run.front)
    for row, model in zip(rows, run.front, strict=True):
        assert float(row["held_out_perplexity"]) == model.held_out_perplexity
        assert int(row["params"]) == model.params
        assert tuple(map(int, row["num_attention_heads"].split())) == model.shape.num_attention_heads
        assert float(row["ratio_to_teacher"]) == model.held_out_perplexity / 19.3


def test_the_csv_of_an_empty_front_is_its_header(tmp_path):
    run = result_with(tmp_path, front=[], winners=[])
    assert front_csv(run).count("\n") == 1
