"""Ways to search side by side: every way runs, is charged for what it used, and the table compares them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.algorithms import WAYS, at_cost, curve, main, reached
from tests.search.tiny_run import LENGTH, make_tiny


def test_all_ways_are_run_once_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny, out = make_tiny(tmp_path), tmp_path / "ways"
    command = [
        "--out", str(out), "--trials", "6", "--population", "4", "--teacher", str(tiny.teacher), "--data",
        str(tiny.corpus), "--space", str(tiny.space), "--params", "0.4..0.9", "--calibration-tokens", "256",
        "--sequence-length", str(LENGTH), "--importance-steps", "3", "--importance-tokens", "64", "--stages", "64,128",
        "--precision", "fp32",
    ]  # fmt: skip
    assert main(command) == 0
    courses = {way: json.loads((out / f"{way}.json").read_text()) for way in WAYS}
    for course in courses.values():
        assert 1 <= len(course["events"]) <= 6
        spent = [event["flops"] for event in course["events"]]
        assert spent == sorted(spent) and spent[0] > course["prepared"]["flops"] > 0
    assert courses["plain"]["prepared"]["flops"] < courses["nsga2"]["prepared"]["flops"]
    assert all(event["loss"] is not None for event in courses["plain"]["events"])
    first = {path: path.stat().st_mtime_ns for path in out.glob("*.json") if path.name != "options.json"}
    shown = capsys.readouterr().out
    assert main(command) == 0 and main(["--out", str(out), "--table"]) == 0
    assert first == {path: path.stat().st_mtime_ns for path in out.glob("*.json") if path.name != "options.json"}
    again = capsys.readouterr().out
    assert shown.splitlines()[-1] in again and all(f"| {way} | " in again for way in WAYS)
    assert main([*command, "--trials", "7"]) == 2
    assert "other options" in capsys.readouterr().err


def test_hypervolume_grows_and_costs_are_read_off_it() -> None:
    box = {"ideal": [0.0, 0.0], "nadir": [1.0, 10.0]}
    events = [
        {"loss": None, "cost": 1.0, "flops": 1.0, "seconds": 1.0},
        {"loss": 0.5, "cost": 0.0, "flops": 2.0, "seconds": 3.0},
        {"loss": 2.0, "cost": 0.0, "flops": 3.0, "seconds": 4.0},
        {"loss": 0.0, "cost": 0.0, "flops": 4.0, "seconds": 5.0},
    ]
    values = curve(events, box)
    np.testing.assert_allclose(values, [0, 0.5, 0.5, 1])
    assert reached(events, values, 0.4, "seconds") == 3.0 and reached(events, values, 1.1, "flops") is None
    assert at_cost(events, values, 3.5, "flops") == pytest.approx(0.5) and at_cost(events, values, 0.5, "flops") == 0


@pytest.mark.parametrize(("arguments", "sentence"), [(["--ways", "greedy"], "none of"), (["--table"], "no finished")])
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), *arguments]) == 2
    assert sentence in capsys.readouterr().err
