"""How far shortcuts can be trusted: the figures, and the audit of a tiny search with its resume."""

import json
import math
import shutil

import numpy as np
import pytest

from slm_ray.search.fidelity import (
    MOST,
    MOST_POINTS,
    Shortcut,
    compare,
    off_by,
    race_record,
    spread,
    stage_losses,
    wrongly_stopped,
)
from tests.references import naive_kendall, naive_spearman
from tests.search.tiny_run import trials_of


def test_stages_read_the_first_blocks_of_every_whole_measurement():
    blocks = {3: [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0]}  # four sequences of two blocks
    found = stage_losses(blocks, 4, 128, (128, 256))
    assert found == {128: {3: 1.5}, 256: {3: 2.5}}
    assert stage_losses(blocks, 4, 128, ()) == {} and stage_losses(blocks, 4, 128, (512, 1024)) == {}


@pytest.mark.parametrize("seed", range(4))
def test_correlations_are_those_of_the_definitions_over_what_both_know(seed):
    rng = np.random.default_rng(seed)
    losses = {trial: float(value) for trial, value in enumerate(rng.integers(0, 6, size=12))}
    values = {trial: losses.get(trial, 0.0) + float(rng.normal()) for trial in range(3, 15)}
    values[4] = values[5]
    found = compare(Shortcut("first", "stage", values, 512, 1e9), "full", losses, seed)
    both = range(3, 12)
    x, y = [values[trial] for trial in both], [losses[trial] for trial in both]
    assert found["candidates"] == 9 and found["against"] == "full"
    assert found["kendall"]["value"] == pytest.approx(naive_kendall(x, y))
    assert found["spearman"]["value"] == pytest.approx(naive_spearman(x, y))
    assert found["kendall"]["low"] <= found["kendall"]["value"] <= found["kendall"]["high"]
    assert [point[0] for point in found["points"]] == list(both)
    assert found["cost"] == {"tokens_per_candidate": 512, "flops_per_candidate": 1e9, "shared_flops": 0.0}


def test_few_equal_and_many_candidates():
    two = compare(Shortcut("a", "size", {1: 0.0, 2: 1.0}), "full", {1: 0.0, 2: 1.0, 3: 4.0}, 0)
    assert two["kendall"] == {"value": None, "low": None, "high": None, "note": "too few candidates: 2"}
    equal = compare(Shortcut("a", "size", dict.fromkeys(range(5), 1.0)), "full", {n: float(n) for n in range(5)}, 0)
    assert equal["kendall"]["value"] is None and "all equal" in equal["spearman"]["note"]
    many = {n: float(n) for n in range(MOST + 500)}
    found = compare(Shortcut("a", "size", many), "full", many, 0)
    assert found["candidates"] == MOST and len(found["points"]) == MOST_POINTS
    assert found["kendall"]["value"] == pytest.approx(1)
    assert json.dumps(found, allow_nan=False)


def test_picks_are_spread_and_the_seed_decides():
    trials = list(range(100, 160))
    picked = spread(trials, 6, (0, 1))
    assert [(trial - 100) // 10 for trial in picked] == list(range(6))
    assert spread(trials, 6, (0, 1)) == picked != spread(trials, 6, (1, 1))
    assert spread(trials[:4], 6, (0, 1)) == trials[:4] and spread([], 6, (0, 1)) == [] and spread(trials, 0, (0,)) == []


def test_a_stopped_candidate_is_wronged_where_no_member_of_the_front_is_as_good():
    front = np.array([[3.0, 100.0], [4.0, 50.0]])
    values = {7: [3.5, 60.0], 8: [4.0, 50.0], 9: [2.9, 200.0], 10: [5.0, 49.0], 11: [3.0, 101.0]}
    assert wrongly_stopped(values, front) == [7, 9, 10]  # one that is equal to a member is not
    record = race_record(20, {7: 3.6, 8: 3.9, 9: 3.0}, {7: 3.5, 8: 4.0, 9: 2.9, 1: 9.0}, [7])
    assert record["audited"] == 3 and record["wrong"] == 1 and record["stopped"] == 20
    assert record["mean_difference"] == pytest.approx(0.1 / 3, abs=1e-6) and record["largest_difference"] == 0.1
    assert record["median_miss"] == 0.1
    low, high = record["wrong_share_interval"]
    assert 0.06 < low < 1 / 3 < high < 0.8  # Wilson's
    assert race_record(5, {}, {}, [])["wrong_share_interval"] is None
    assert off_by({}, {1: 2.0})["mean_difference"] is None


OPTIONS = ("--audit", "3", "--trials", "18", "--precision", "bf16", "--reconstruct", "none", "--winners", "1")


def test_a_search_says_what_its_shortcuts_cost_and_a_resume_measures_nothing_twice(command, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert command(tiny.arguments(run, *OPTIONS, "--screen", "2")) == 0
    assert "Shortcuts: tau with the full loss: " in capsys.readouterr().out
    found, result = (json.loads((run / name).read_text()) for name in ("fidelity.json", "result.json"))
    trials = {record["trial"]: record for record in trials_of(run)}
    stopped = [trial for trial, record in trials.items() if record["decided"] == "dominated"]
    lines = [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]
    again = {name: [line["trial"] for line in lines if line["precision"] == name] for name in ("bf16", "fp32")}
    assert set(again["bf16"]) <= set(stopped) and len(again["bf16"]) == min(3, len(stopped)) > 0
    assert len(again["fp32"]) == 3 and not set(again["fp32"]) & set(stopped)

    entries = {(entry["shortcut"], entry["against"]): entry for entry in found["shortcuts"]}
    whole = len(trials) - len(stopped) + len(again["bf16"])
    for name in ("first 224 tokens", "first 384 tokens", "importance", "learned importance", "parameters"):
        assert entries[name, "full"]["candidates"] == whole
    assert entries["all calibration tokens", "held-out"]["candidates"] == len(result["front"])
    assert entries["bf16 on 128 tokens", "fp32"]["kendall"]["value"] > 0.3
    assert entries["prediction", "recorded"]["candidates"] > 0
    assert entries["first 224 tokens", "full"]["kendall"]["value"] > 0.5
    for trial, value, loss in entries["first 224 tokens", "full"]["points"]:
        if trials[trial]["decided"] == "full":
            measured = trials[trial]["measurements"]["perplexity"]
            assert loss == pytest.approx(math.log(measured["value"]), rel=1e-4)
            assert value == pytest.approx(np.mean(measured["blocks"][:7]), rel=1e-4)
    assert found["race"]["stopped"] == len(stopped) and found["race"]["audited"] == len(again["bf16"])
    assert 0 < found["precision"]["largest_difference"] < 0.1 and found["precision"]["tokens"] == 128
    for trial, value, loss in entries["bf16 on 128 tokens", "fp32"]["points"]:  # of the same tokens: rounding alone
        assert value == pytest.approx(np.mean(trials[trial]["measurements"]["perplexity"]["blocks"][:4]), rel=1e-4)
        assert value == pytest.approx(loss, abs=0.1)

    spent = result["spent"]
    tokens = {"bf16": 512, "fp32": 128}
    read = [(trials[line["trial"]]["cost"]["flops"], tokens[line["precision"]]) for line in lines]
    assert spent["audit"] == found["spent"] and spent["audit"]["tokens"] == sum(count for _, count in read)
    assert spent["audit"]["flops"] == sum(flops * count for flops, count in read)
    assert spent["flops"] > spent["audit"]["flops"] and spent["seconds"]["audit"] > 0
    assert [{k: v for k, v in entry.items() if k != "points"} for entry in found["shortcuts"]] == (
        result["fidelity"]["shortcuts"]
    )
    assert "What the shortcuts cost" in (run / "report.html").read_text()

    kept = (run / "audit.jsonl").read_text().splitlines(keepends=True)
    for name in ("result.json", "fidelity.json"):  # as a kill in the middle of the audit leaves it
        (run / name).unlink()
    shutil.rmtree(run / "winners")
    (run / "audit.jsonl").write_text("".join(kept[:4]) + '{"trial": 1, "prec')
    assert command(["--resume", run]) == 0
    after = (run / "audit.jsonl").read_text().splitlines(keepends=True)
    assert after[:4] == kept[:4] and len(after) == len(kept)
    assert json.loads((run / "fidelity.json").read_text()) == found
    assert json.loads((run / "result.json").read_text())["front"] == result["front"]
