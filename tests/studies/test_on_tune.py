"""Sweeps through Ray Tune: points as trials in processes of their own, a scheduler that stops some of them early."""

import csv
from types import SimpleNamespace

import pytest

from slm_ray.runtime.commands import run_command
from slm_ray.studies import launching
from slm_ray.studies.command import main


@pytest.mark.slow
def test_points_are_trials_and_asha_stops_the_worst(tiny_sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny_sweep.cache))
    path = tiny_sweep.write(
        tmp_path / "mine.yaml",
        # Long enough that the worst is still training when its first evaluations have been judged.
        base={"tokens": "32k", "eval-every": "1k", "checkpoint-every": "4k"},
        grid={"learning-rate": [0.02, 1e-9], "sequence-length": [16]},
        points=[{"seed": "0"}],
        scheduler={"name": "asha", "max-t": "32k", "grace-period": "2k", "reduction-factor": 2},
    )
    run = tmp_path / "run"
    assert run_command(main, [str(path), "--tracker", "none", "--out", str(run), "--concurrent", "1"]) == 0
    rows = list(csv.DictReader((run / "table.csv").open()))
    assert [row["status"] for row in rows] == ["done", "stopped"]
    assert int(rows[1]["tokens"]) < int(rows[0]["tokens"])
    assert list(run.glob("tasks/*/student.student/checkpoints/step-*"))
    # Both are decided: nothing is run again, and the one that was stopped can still be continued by its own command.
    assert run_command(main, ["--resume", str(run), "--tracker", "none"]) == 0
    assert list(csv.DictReader((run / "table.csv").open())) == rows


def test_a_task_runs_in_the_folder_that_the_sweep_was_given_in(tmp_path, monkeypatch):
    """A trial's own process is where Ray was started, and options name files as the sweep's folder does."""
    desk, elsewhere = tmp_path / "desk", tmp_path / "elsewhere"
    desk.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(launching, "arguments", lambda task, setting: ["texts"])
    (desk / "shown.py").write_text(
        "import os\ndef main(words):\n    print('in', os.getcwd(), os.path.exists(words[0]))\n    return 3\n"
    )
    (desk / "texts").write_text("")
    setting = launching.Setting(str(tmp_path / "run"), str(desk), None, False, "none", None, "mine")
    task = SimpleNamespace(name="t", stage=SimpleNamespace(name="shown", module="shown", result="none"))
    child = launching.ChildTask(task, setting)
    monkeypatch.setattr(launching, "is_done", lambda *_: False)
    assert child.wait(60).status == "failed"
    assert f"in {desk} True" in launching.log_file(task, tmp_path / "run").read_text()
