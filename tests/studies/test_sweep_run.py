"""Sweeps in this process: the table, failures, what is skipped, and that a point equals the same command by hand."""

import csv
import json
import signal
import subprocess
import sys

import pyarrow.parquet
import pytest
import yaml

from slm_ray.pretrain.command import PRETRAIN
from slm_ray.records.base import read_lines
from slm_ray.records.sweep import Attempt
from slm_ray.records.training import TrainEvaluation
from slm_ray.runtime.commands import run_command
from slm_ray.studies.command import main
from tests.search.processes import wait_until
from tests.studies.tiny_sweep import BATCH, LENGTH, STEPS

TOKENS = STEPS * BATCH * LENGTH


@pytest.fixture(autouse=True)
def cache(tiny_sweep, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny_sweep.cache))


def sweep(path, out, *more: str) -> int:
    return run_command(main, [str(path), "--launcher", "local", "--tracker", "none", "--out", str(out), *more])


def table(run):
    return list(csv.DictReader((run / "table.csv").open()))


def attempts(run):
    return [(record.task, record.status) for record in read_lines(run / Attempt.FILE, Attempt)]


@pytest.fixture(scope="module")
def finished(tiny_sweep, tmp_path_factory):
    """Three optimisers and a length that the model does not take."""
    folder = tmp_path_factory.mktemp("finished")
    path = tiny_sweep.write(
        folder / "mine.yaml",
        groups={
            "optimisers": {"grid": {"optimizer": ["adamw", "lion", "lamb"]}},
            "broken": {"set": {"sequence-length": 999, "tokens": "8k"}},
        },
        plots=[
            {"name": "losses", "x": "optimizer", "y": "loss", "where": {"group": "optimisers"}},
            {"name": "curves", "curves": True, "x": "tokens", "y": "loss", "group": "optimizer"},
            {"name": "wrong", "x": "optimzer", "y": "loss"},
            {"analysis": "best", "by": ["group"]},
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_RAY_CACHE", str(tiny_sweep.cache))
        status = sweep(path, folder / "run")
    return path, folder / "run", status


def test_a_point_that_fails_is_a_row_and_the_others_go_on(finished):
    _, run, status = finished
    assert status == 2
    rows = table(run)
    assert [row["status"] for row in rows] == ["done", "done", "done", "failed"]
    assert "--sequence-length 999 is over" in rows[3]["error"]
    assert [row["optimizer"] for row in rows[:3]] == ["adamw", "lion", "lamb"]
    assert all(float(row["loss"]) < 10 and int(row["tokens"]) == TOKENS for row in rows[:3])


def test_the_table_has_four_forms_and_its_plots(finished):
    _, run, _ = finished
    parquet = pyarrow.parquet.read_table(run / "table.parquet").to_pylist()
    assert [row["loss"] for row in parquet] == [float(row["loss"]) if row["loss"] else None for row in table(run)]
    text = (run / "table.txt").read_text()
    assert "wrong: the table has no column 'optimzer': did you mean 'optimizer'?" in text
    assert "best loss of every group:" in text
    page = (run / "table.md").read_text()
    assert page.startswith("# mine") and "![losses](losses.png)" in page
    assert [(run / name).read_bytes()[:4] for name in ("losses.png", "curves.png")] == [b"\x89PNG"] * 2
    summary = json.loads((run / "sweep.json").read_text())
    assert summary["states"] == {"done": 3, "failed": 1}
    curves = list(csv.DictReader((run / "curves.csv").open()))
    assert {row["optimizer"] for row in curves} == {"adamw", "lion", "lamb"}


def test_a_resume_repeats_nothing_that_is_done_and_tries_what_failed(finished, capsys):
    _, run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.glob("tasks/*/result.json")}
    counted = len(attempts(run))
    assert run_command(main, ["--resume", str(run), "--launcher", "local", "--tracker", "none"]) == 2
    assert "1 of 4 points failed, the first is point 3 (sequence_length=999, tokens=8k)" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.glob("tasks/*/result.json")} == before
    assert len(before) == 3
    assert [status for _, status in attempts(run)[counted:]] == ["failed"]


def test_a_file_that_has_grown_runs_only_what_is_new(finished, tiny_sweep, tmp_path):
    _, run, _ = finished
    path = tiny_sweep.write(tmp_path / "mine.yaml", grid={"optimizer": ["adamw", "muon"]})
    counted = len(attempts(run))
    assert run_command(main, [str(path), "--resume", str(run), "--launcher", "local", "--tracker", "none"]) == 0
    assert [status for _, status in attempts(run)[counted:]] == ["done"]
    assert [row["optimizer"] for row in table(run)] == ["adamw", "muon"]


def test_a_point_equals_the_command_by_hand(finished, tiny_sweep, tmp_path):
    flags = [f"--{name}={value}" for name, value in tiny_sweep.base(optimizer="lion", out=tmp_path / "run").items()]
    assert run_command(PRETRAIN.main, flags) == 0
    (evals,) = (tmp_path / "run").glob("*/evals.jsonl")
    by_hand = [(record.tokens, record.loss) for record in read_lines(evals, TrainEvaluation)]
    _, run, _ = finished
    curves = list(csv.DictReader((run / "curves.csv").open())) if (run / "curves.csv").exists() else []
    started = {path.parent: json.loads(path.read_text())["options"] for path in run.glob("tasks/*/config.json")}
    task = next(folder for folder, options in started.items() if options["optimizer"] == "lion")
    (evals,) = task.glob("*/evals.jsonl")
    assert [(record.tokens, record.loss) for record in read_lines(evals, TrainEvaluation)] == by_hand
    assert curves


def test_tables_of_several_sweeps_are_one(finished, tiny_sweep, tmp_path, capsys):
    path = tiny_sweep.write(tmp_path / "other.yaml", grid={"floor": [0.2]})
    assert sweep(path, tmp_path / "run") == 0
    capsys.readouterr()
    _, run, _ = finished
    assert run_command(main, ["--table", str(run), str(tmp_path / "run"), "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["sweep"] for row in rows} == {"mine", "other"}
    out = tmp_path / "all.parquet"
    assert run_command(main, ["--table", str(run), "--format", "parquet", "--out", str(out)]) == 0
    assert pyarrow.parquet.read_table(out).num_rows == len(rows) - 1
    assert run_command(main, ["--table", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_steps_refer_to_each_other_and_are_shared(tiny_sweep, tmp_path):
    content = {
        "stages": {
            "first": {"stage": "pretrain", **tiny_sweep.base()},
            "second": {"stage": "pretrain", **tiny_sweep.base(student="${first.model}")},
        },
        "grid": {"second.seed": ["0", "1"]},
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(content))
    assert sweep(tmp_path / "two.yaml", tmp_path / "run") == 0
    assert [status for _, status in attempts(tmp_path / "run")] == ["done"] * 3
    rows = table(tmp_path / "run")
    assert len({row["first.loss"] for row in rows}) == 1
    assert all(float(row["second.first_loss"]) == pytest.approx(float(row["first.loss"]), rel=1e-4) for row in rows)


def test_what_needs_a_failed_step_fails_for_that_reason(tiny_sweep, tmp_path):
    content = {
        "stages": {
            "first": {"stage": "pretrain", **tiny_sweep.base(**{"sequence-length": 999, "tokens": "8k"})},
            "second": {"stage": "pretrain", **tiny_sweep.base(student="${first.model}")},
        },
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(content))
    assert sweep(tmp_path / "two.yaml", tmp_path / "run") == 2
    (row,) = table(tmp_path / "run")
    assert row["status"] == "failed"
    assert row["error"].startswith("its first failed: --sequence-length 999 is over")


def test_a_point_that_cannot_fit_is_refused_before_anything_starts(tiny_sweep, tmp_path, capsys):
    path = tiny_sweep.write(tmp_path / "mine.yaml", grid={"optimizer": ["adamw"]})
    assert sweep(path, tmp_path / "run", "--device-memory", "100M") == 2
    said = capsys.readouterr().err
    assert "1 of 1 points do not fit into the memory: pretrain of point 0 (optimizer=adamw) needs about" in said
    assert not (tmp_path / "run").exists()
    assert run_command(main, [str(path), "--dry-run", "--device-memory", "100M"]) == 2
    assert run_command(main, [str(path), "--dry-run"]) == 0


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(tiny_sweep, tmp_path):
    path = tiny_sweep.write(tmp_path / "mine.yaml", grid={"seed": ["0", "1", "2"]})
    run = tmp_path / "run"
    command = f"{sys.executable} -m slm_ray.sweep {path} --launcher local --tracker none --out {run}".split()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(list(run.glob("tasks/*/config.json"))) >= 2, 120, "the second point")
        process.send_signal(signal.SIGKILL)
    done = {task: status for task, status in attempts(run)}
    first = next(iter(run.glob("tasks/*/result.json")))
    written = first.stat().st_mtime_ns
    assert run_command(main, ["--resume", str(run), "--launcher", "local", "--tracker", "none"]) == 0
    assert first.stat().st_mtime_ns == written
    assert [row["status"] for row in table(run)] == ["done"] * 3
    assert set(done.values()) == {"done"}
