"""What every command does that works in a run folder."""

from __future__ import annotations

import errno
import importlib
import json
from pathlib import Path

import pytest

from slm_ray.cli import STAGES, dispatch
from slm_ray.config.base import Config, Count, option
from slm_ray.config.errors import ConfigError, UserError
from slm_ray.records.files import explain_os_error
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.stage import Stage


class Options(Config):
    """A command's options."""

    out: str | None = option(None, "the run's folder")
    storage: str | None = option(None, "a second place")
    tokens: Count = option(1000, "tokens", ge=1)
    workers: int = option(1, "workers", ge=1)


class Work:
    """What a command does: it notes its calls, and ends as it is told."""

    def __init__(self):
        self.seen, self.ends, self.begins = [], None, True

    def __call__(self, config, folder):
        self.seen.append(config)
        if self.begins:
            folder.begin()
        if self.ends is not None:
            raise self.ends
        (folder.path / "result.json").write_text("{}")


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Work()


def stage_of(work, name="try", **changes):
    def check(config):
        if config.tokens == 13:
            raise UserError("--tokens must not be 13: give another number")

    given = {
        "name": name, "summary": "try it", "config": Options, "execute": work, "plan": lambda one: f"{one.tokens}",
        "show": lambda path: print(f"shown {path.name}"), "result_file": "result.json", "may_change": ("workers",),
        "default_out": lambda config, time: f"runs/try-{time}", "check": check,
    }  # fmt: skip
    return Stage(**given | changes)


def ended(stage, *words):
    return run_command(stage.main, words)


def test_a_run_from_options_and_a_file(work, capsys):
    Path("options.yaml").write_text("tokens: 2k\nworkers: 3\n")
    assert ended(stage_of(work), "--config", "options.yaml", "--workers", "2", "--out", "run") == 0
    assert (work.seen[0].tokens, work.seen[0].workers) == (2000, 2) and capsys.readouterr().out == "shown run\n"
    record = json.loads(Path("run/config.json").read_text())
    assert record["stage"] == "try" and record["options"]["tokens"] == 2000
    assert record["command"] == "python -m slm_ray.try --config options.yaml --workers 2 --out run"


def test_a_dry_run_and_a_mistake_leave_nothing(work, capsys):
    before = sorted(Path().rglob("*"))
    assert ended(stage_of(work), "--dry-run") == 0 and capsys.readouterr().out == "1000\n"
    for words, says in (
        (["--tokens", "0", "--workers", "0"], "options: 2 mistakes"), (["--token", "5"], "did you mean '--tokens'"),
        (["--tokens", "13"], "--tokens must not be 13"), (["--tokens", "13", "--dry-run"], "--tokens must not be 13"),
        (["--resume", "run", "--dry-run"], "--dry-run belongs to a new run"),
    ):  # fmt: skip
        assert ended(stage_of(work), *words) == 2 and says in capsys.readouterr().err
    work.begins, work.ends = False, UserError("no such teacher")
    assert ended(stage_of(work), "--out", "deep/run") == 2 and capsys.readouterr().err == "error: no such teacher\n"
    assert sorted(Path().rglob("*")) == before and len(work.seen) == 1


@pytest.mark.parametrize(
    ("begins", "ends", "status", "says"),
    [
        (True, KeyboardInterrupt(), 130, "interrupted: what was finished is kept; continue with --resume run\n"),
        (False, KeyboardInterrupt(), 130, "interrupted\n"),
        (True, UserError("the loss is not finite: lower --lr"), 2, "error: the loss is not finite: lower --lr\n"),
        (True, explain_os_error(OSError(errno.ENOSPC, "full", "run/x"), "writing run/x"), 2,
         "error: writing run/x: the disk is full: free some space, then continue with --resume run\n"),
        (False, explain_os_error(OSError(errno.ENOSPC, "full", "run/x"), "writing run/x"), 2,
         "error: writing run/x: the disk is full: free some space\n"),
    ],
)  # fmt: skip
def test_a_resume_is_offered_where_it_helps(begins, ends, status, says, work, capsys):
    work.begins, work.ends = begins, ends
    assert ended(stage_of(work), "--out", "run") == status
    shown = capsys.readouterr().err
    assert shown.startswith(says) and ("--resume" in shown) == ("--resume" in says)
    assert Path("run").exists() == begins


def test_a_run_is_continued_with_its_own_options(work, capsys):
    stage = stage_of(work)
    work.ends = KeyboardInterrupt()
    ended(stage, "--tokens", "5", "--out", "run")
    work.ends = None
    assert ended(stage, "--resume", "run", "--tokens", "6") == 2
    assert "--tokens cannot be changed when run is resumed (only --workers can)" in capsys.readouterr().err
    assert ended(stage, "--resume", "run", "--workers", "4") == 0
    assert (work.seen[-1].tokens, work.seen[-1].workers) == (5, 4)
    assert ended(stage, "--resume", "run") == 0 and len(work.seen) == 2
    assert capsys.readouterr().out == "shown run\nrun is finished already:\n\nshown run\n"
    assert ended(stage, "--resume", "elsewhere") == 2 and "holds no run to resume" in capsys.readouterr().err


def test_a_folder_that_gathers_takes_more_runs(work, capsys):
    stage = stage_of(work, gathers=True)
    assert ended(stage, "--out", "run") == 0 == ended(stage, "--tokens", "7", "--out", "run")
    assert [config.tokens for config in work.seen] == [1000, 7]
    assert ended(stage, "--resume", "run") == 0 and work.seen[-1].tokens == 7
    assert ended(stage_of(work, name="other", gathers=True), "--out", "run") == 2
    assert "run is a run of `slm-ray try`, not of `slm-ray other`" in capsys.readouterr().err


def on_stage():
    """The commands that are declared as a stage."""
    for name, entry in STAGES.items():
        command = getattr(importlib.import_module(entry.module), name.upper(), None)
        if isinstance(command, Stage):
            yield name


@pytest.mark.parametrize("name", list(on_stage()))
def test_another_commands_run_is_not_resumed(name, work, capsys):
    ended(stage_of(work), "--out", "run")
    with pytest.raises(UserError, match=rf"^run is a run of `slm-ray try`, not of `slm-ray {name}`: continue it with"):
        dispatch([name, "--resume", "run"])


def test_mistakes_travel_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(ConfigError("options", ["a: no", "b: no"])))
    assert error.problems == ["a: no", "b: no"] and str(error).startswith("options: 2 mistakes:")
    full = explain_os_error(OSError(errno.ENOSPC, "full"), "writing x")
    assert pickle.loads(pickle.dumps(full)).is_resumable
