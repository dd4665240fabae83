"""The section on what shortcuts cost, from records alone."""

import json

import pytest
from synthetic_run import make_result, make_trials, write_run
from test_report_page import outline, page_json

from slm_ray.report import load_run, summary_text
from slm_ray.report.fidelity import TITLE, fidelity_line, fidelity_table, race_sentence
from slm_ray.report.search_page import report_markdown, report_page


def entry(name, kind, against="full", tau=0.8, points=6, **cost):
    found = {"value": tau, "low": tau - 0.2, "high": tau + 0.1, "note": None}
    return {
        "shortcut": name, "kind": kind, "against": against, "candidates": points, "kendall": found, "spearman": found,
        "cost": {"tokens_per_candidate": 0, "flops_per_candidate": 0.0, "shared_flops": 0.0} | cost,
        "points": [[trial, float(-trial if kind == "size" else trial), 3.0 + trial] for trial in range(points)],
    }  # fmt: skip


UNDEFINED = {"value": None, "low": None, "high": None, "note": "too few candidates: 2"}
AUDIT = {
    "audit": 6, "seed": 0, "resamples": 2000, "proxy": "perplexity",
    "shortcuts": [
        entry("first 512 tokens", "stage", tokens_per_candidate=512, flops_per_candidate=8.1e10),
        entry("importance", "scores", tau=0.61, shared_flops=1.1e12), entry("parameters", "size", tau=0.55),
        entry("all calibration tokens", "full", "trained", points=2) | {"kendall": UNDEFINED},
    ],
    "race": {"stopped": 48, "audited": 6, "mean_difference": -0.002, "median_miss": 0.012, "largest_difference": 0.03,
             "wrong": 1, "wrong_trials": [7], "wrong_share_interval": [0.03, 0.56]},
    "precision": {"computed_in": "bf16", "audited": 6, "mean_difference": 0.0, "median_miss": 0.0001,
                  "largest_difference": 0.0012},
    "spent": {"models": 12, "tokens": 98304, "flops": 1.5e13},
}  # fmt: skip


def run_with(folder, fidelity):
    trials = make_trials(20)
    write_run(folder, trials, make_result(trials))
    if fidelity is not None:
        (folder / "fidelity.json").write_text(json.dumps(fidelity))
    return load_run(folder)


def test_the_page_has_a_table_what_the_race_got_wrong_and_a_panel_each(tmp_path):
    run = run_with(tmp_path, AUDIT)
    rows = {row[0]: row for row in fidelity_table(run).rows}
    assert rows["first 512 tokens"][1:] == (
        "loss on all calibration tokens", "6", "+0.80 (+0.60 to +0.90)", "+0.80 (+0.60 to +0.90)", "512", "81G", "–",
    )  # fmt: skip
    assert rows["importance"][-1] == "1.10T"
    assert rows["all calibration tokens"][1:4] == ("loss after training", "2", "too few candidates: 2")
    page = report_page(run)
    outline(page)
    panels = page_json(page)["fidelity"]["panels"]
    assert [panel["title"] for panel in panels] == ["first 512 tokens", "importance", "parameters"]
    assert panels[2]["points"][1][0] == 1  # a size is shown as it is, not turned around
    text = report_markdown(run)
    for said in (
        TITLE, "Of 6 that were then measured to the end, 1 would have been on the front (3% to 56% of all).",
        "estimated to within 0.012 nats per token, all to within 0.030.",
        "in fp32: bf16 had half of their losses to within 0.0001",
        "12 candidates on 98.3K tokens in all, 15T FLOPs",
    ):  # fmt: skip
        assert said in text.replace("\\", "")


def test_the_terminal_has_one_line(tmp_path):
    run = run_with(tmp_path, AUDIT)
    line = fidelity_line(run)
    assert line == (
        "Shortcuts: tau with the full loss: first 512 tokens +0.80, importance +0.61, parameters +0.55; 1 of 6 stopped "
        "candidates looked at again belong on the front"
    )
    assert line in summary_text(run).splitlines()


def test_the_result_alone_has_all_but_the_points(tmp_path):
    shown = AUDIT | {"shortcuts": [{k: v for k, v in one.items() if k != "points"} for one in AUDIT["shortcuts"]]}
    trials = make_trials(20)
    run = load_run(write_run(tmp_path, trials, make_result(trials, fidelity=shown)))
    page = report_page(run)
    assert TITLE in page and "fidelity" not in page_json(page)


@pytest.mark.parametrize(
    "broken",
    [None, {}, {"shortcuts": "none"},
     {"shortcuts": [3, {"kendall": 5, "points": 7}], "race": [], "spent": {"models": "x"}},
     {"shortcuts": [{"shortcut": "a", "kendall": {"value": float("nan")}, "points": [1, [2], [1, "x", None]]}],
      "race": {"stopped": 3, "audited": 0, "wrong": 0}}],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_no_trouble(tmp_path, broken):
    run = run_with(tmp_path, broken)
    assert race_sentence(run) is None and fidelity_line(run) is None
    page, text = report_page(run), report_markdown(run)
    outline(page)
    assert "nan" not in text.lower().replace("nanoseconds", "") and summary_text(run)


def test_a_damaged_file_is_a_note(tmp_path):
    run_with(tmp_path, None)
    (tmp_path / "fidelity.json").write_text('{"shortcuts": [')
    run = load_run(tmp_path)
    assert any("fidelity.json" in note for note in run.notes) and TITLE not in report_page(run)
