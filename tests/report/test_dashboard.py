import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from slm_ray import dashboard as command
from slm_ray.config.base import options_of
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.records import metric_names as names
from slm_ray.report import dashboard, dashboard_wandb
from slm_ray.report.dashboard import BARS, CONFIG, CONFIG_KEYS, LINE, SECTIONS, Panel, Section, unknown_keys
from slm_ray.runtime.commands import run_command
from tests.report.wandb_server import wandb_server

pytest.importorskip("wandb_workspaces")


@pytest.fixture(autouse=True)
def no_key(tmp_path, monkeypatch):
    """A machine without a key; whoever asks the network for anything fails the test."""
    for name in ("API_KEY", "MODE", "BASE_URL", "IDENTITY_TOKEN_FILE", "ENTITY", "PROJECT"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # so that it is put back
    monkeypatch.delenv("WANDB_DATA_DIR")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("asked the network"))
    return tmp_path


def texts_in(value):
    """Every text inside a JSON value."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts_in(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


def test_every_figure_that_a_panel_names_is_logged_somewhere():
    assert unknown_keys() == []
    assert unknown_keys((Section("s", "", (), (Panel(LINE, "t", "tokens", ("train/los",)),)),)) == ["train/los"]
    assert unknown_keys((Section("s", "", (), (Panel(BARS, "t", y=(CONFIG + "learning_rat",)),)),)) != []


def test_every_option_that_a_panel_names_is_one():
    options = {*options_of(PretrainConfig)} | {"params"}  # tracking adds its size
    assert set(CONFIG_KEYS) <= options


def test_all_that_was_asked_for_is_shown():
    shown = {section.name: {key for panel in section.panels for key in panel.keys} for section in SECTIONS}
    assert {names.RESULT_PARAMS, names.HYPERVOLUME} <= shown["Searches"]
    wanted = {names.TOKENS, names.FLOPS, *(names.TRAIN[name] for name in ("lr", "tokens_per_second", "grad_norm"))}
    assert wanted <= shown["Pretraining"]
    assert {names.TASKS_TABLE, names.TEXT_TABLE, names.RESULT_TASKS} <= shown["Evaluation"]
    kinds = {panel.kind for section in SECTIONS for panel in section.panels if section.name == "Sweeps"}
    assert {dashboard.PARALLEL, dashboard.COMPARER} <= kinds


@pytest.mark.parametrize("kind", [dashboard_wandb.WORKSPACE, dashboard_wandb.REPORT])
def test_the_specification_is_what_wandb_takes_and_names_every_key(kind):
    found = dashboard_wandb.specification(dashboard_wandb.build(kind, "", "my-project"))
    assert (found["kind"], found["project"], found["entity"]) == (kind, "my-project", None)
    said = texts_in(found["spec"])
    for section in SECTIONS:
        assert section.name in said
        for panel in section.panels:
            for key in panel.keys:
                plain = key.removeprefix(CONFIG)
                assert any(plain in text for text in said), key


def test_a_report_shows_each_section_its_own_runs():
    found = dashboard_wandb.specification(dashboard_wandb.build(dashboard_wandb.REPORT, "", "p"))
    grids = [block for block in found["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(SECTIONS)
    assert "jobType" in json.dumps(grids[0]) and '"search"' in json.dumps(grids[0])


@pytest.mark.parametrize("flags, kind", [([], "workspace"), (["--report", "--entity", "me"], "report")])
def test_the_command_writes_the_specification_without_a_key(flags, kind, tmp_path, capsys):
    file = tmp_path / "spec.json"
    assert run_command(command.main, ["--spec", str(file), *flags]) == 0
    assert f"a {kind} of {sum(len(section.panels) for section in SECTIONS)} panels" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["kind"] == kind and written["entity"] == ("me" if flags else None)


@pytest.mark.parametrize(
    "flags, says",
    [
        ([], "there is no W&B key on this machine"),
        (["--report"], "so the report cannot be saved: run `wandb login`"),
        (["--read", "nowhere"], "nowhere does not exist"),
        (["--read", ".", "--report"], "--read prints what is on this disk"),
        (["--spek", "x"], "unknown argument '--spek': did you mean '--spec'?"),
    ],
)
def test_what_cannot_be_done_gets_one_sentence(flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(command.main, flags) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_with_a_key_it_is_saved_and_its_address_printed(monkeypatch, capsys):
    from wandb_workspaces.workspaces import Workspace

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    seen = []
    monkeypatch.setattr(Workspace, "save", lambda self: seen.append((self.entity, self.project, len(self.sections))))
    monkeypatch.setattr(Workspace, "url", "https://example.org/me/p?nw=1")
    assert run_command(command.main, ["--entity", "me", "--project", "p"]) == 0
    assert capsys.readouterr().out == "https://example.org/me/p?nw=1\n" and seen == [("me", "p", len(SECTIONS))]


@pytest.mark.slow
@pytest.mark.parametrize("flags, address", [([], "/me/p?nw=abc"), (["--report"], "/me/p/reports/slm_ray--Vmlldzox")])
def test_wandb_s_own_code_saves_what_was_checked(flags, address, tmp_path):
    with wandb_server() as (server, saved):
        environment = {**os.environ, "WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": server, "HOME": str(tmp_path)}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "slm_ray.dashboard", "--entity", "me", "--project", "p", *flags]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{server}{address}\n", done.stderr
    (sent,) = saved
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("me", "p", "slm_ray")
    kind = dashboard_wandb.REPORT if flags else dashboard_wandb.WORKSPACE
    checked = dashboard_wandb.specification(dashboard_wandb.build(kind, "", "p"))["spec"]
    assert view_types(json.loads(sent["spec"])) == view_types(checked) != []


def view_types(value):
    """The kinds of all panels of a specification."""
    if isinstance(value, dict):
        own = [value["viewType"]] if "viewType" in value else []
        return own + [kind for inner in value.values() for kind in view_types(inner)]
    return [kind for inner in value for kind in view_types(inner)] if isinstance(value, list) else []


def test_what_wandb_refuses_is_said_without_secrets(monkeypatch, capsys):
    from wandb_workspaces.workspaces import Workspace

    key = "k" * 40
    monkeypatch.setenv("WANDB_API_KEY", key)

    def refuse(self):
        raise ConnectionError(f"nobody at https://api:{key}@example.org")

    monkeypatch.setattr(Workspace, "save", refuse)
    assert run_command(command.main, ["--entity", "me"]) == 2
    said = capsys.readouterr().err
    assert "did not take the dashboard (ConnectionError" in said and key not in said


def test_without_the_extra_it_says_how_to_install_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert run_command(command.main, ["--spec", str(tmp_path / "x")]) == 2
    assert "pip install 'slm-ray[wandb]'" in capsys.readouterr().err


def lines_of(monkeypatch, *records, code=0, stderr=b""):
    """Have W&B's reader print some records."""
    text = "\n".join(json.dumps(record) for record in records).encode()
    done = types.SimpleNamespace(stdout=text, stderr=stderr, returncode=code)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


def run_record(**changes):
    run = {"run_id": "abc", "display_name": "r", "project": "p", "config": {"update": {"seed": 1, "_wandb": {}}}}
    return {"type": "run", "run": run | changes}


def test_a_run_cut_short_is_read_as_far_as_it_goes(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "wandb/offline-run-20260101_000000-abc"
    folder.mkdir(parents=True)
    (folder / "run-abc.wandb").write_bytes(b"")
    row = {"type": "history", "history": {"item": {"tokens": 1, "train/loss": 3.0, "_step": 4}}}
    lines_of(monkeypatch, run_record(), row, code=1, stderr=b"unexpected EOF")
    assert run_command(command.main, ["--read", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "not finished, not sent" in said and "tokens, train/loss (1 rows)" in said
    assert "note: the file is cut short (unexpected EOF)" in said
    assert f"wandb sync {shlex.quote(str(folder))}" in said
    (folder / "run-abc.wandb.synced").write_bytes(b"")
    assert run_command(command.main, ["--read", str(folder / "run-abc.wandb")]) == 0
    assert "wandb sync" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "code, stderr, says",
    [
        (1, b"Error: No such command 'leet'.", "needs wandb 0.31 or newer"),
        (1, b"bad header", "W&B cannot read"),
        (0, b"", "W&B finds no run in"),
    ],
)
def test_a_file_that_is_no_run_is_said(code, stderr, says, monkeypatch, tmp_path, capsys):
    (tmp_path / "run-abc.wandb").write_bytes(b"junk")
    lines_of(monkeypatch, code=code, stderr=stderr)
    assert run_command(command.main, ["--read", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_a_table_outside_its_folder_is_not_read(monkeypatch, tmp_path):
    from slm_ray.config.errors import UserError
    from slm_ray.report.offline_run import read_offline_run

    file = tmp_path / "w" / "run-abc.wandb"
    file.parent.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    item = {"t._type": "table-file", "t.path": "../../secret.json"}
    lines_of(monkeypatch, run_record(), {"type": "history", "history": {"item": item}})
    run = read_offline_run(file)
    with pytest.raises(UserError, match="has lost"):
        run.table("t")
    with pytest.raises(UserError, match="has no table other: it has t"):
        run.table("other")


@pytest.mark.slow
def test_a_real_offline_run_is_read_back_whole(no_key, monkeypatch, capfd):
    pytest.importorskip("wandb")
    from slm_ray.report.build import build_report
    from slm_ray.report.offline_run import find_offline_runs, read_offline_run
    from slm_ray.report.tracked import send_results
    from slm_ray.runtime.trackers import make_tracker
    from tests.report.synthetic_run import finished_run

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for something"))
    folder, said = finished_run(no_key / "run", count=20), []
    build_report(folder)
    for first in (1, 3):  # the second is a resumed run
        tracker = make_tracker(
            "wandb", folder, group="g", job_type="search", tags=["fine"], say=said.append,
            config={"seed": 1, "hub_token": "hf_" + "a" * 20},
        )  # fmt: skip
        for number in (first, first + 1):
            tracker.log({names.EVALUATIONS: number, names.BEST + "perplexity": 10.0 / number}, step=2 * number)
        if first == 3:
            send_results(tracker, folder)
        tracker.finish()
    assert len(said) == 2 and all("offline" in sentence for sentence in said)
    assert capfd.readouterr().out == ""
    before, after = [read_offline_run(file) for file in find_offline_runs(folder)]
    assert before.id == after.id and (after.group, after.job_type, after.tags) == ("g", "search", ("fine",))
    assert (after.config["seed"], after.config["hub_token"]) == (1, "[redacted]")
    assert after.config["environment"]["python"] and after.name == "run" and after.finished
    assert [row["_step"] for row in before.rows] == [2, 4]
    assert after.figures[names.BEST + "perplexity"] == 2 and after.last[names.BEST + "perplexity"] == 2.5
    assert after.axes["best/*"] == names.EVALUATIONS and after.axes["eval/*"] == names.TOKENS
    columns, rows = after.table(names.FRONT_TABLE)
    result = json.loads((folder / "result.json").read_text())
    assert {row[columns.index("trial")] for row in rows} == {entry["trial"] for entry in result["front"]}
    assert after.picture(names.FRONT_PICTURE).read_bytes() == (folder / "front.png").read_bytes()
    assert after.summary[names.RESULT_FLOPS] == 1.2e13
    assert any((folder / "wandb" / "artifacts" / "staging").iterdir()), "what is sent later lies with the run"
    assert run_command(command.main, ["--read", str(folder)]) == 0
    printed = capfd.readouterr().out
    assert "send all of them:" in printed and "tables/front" in printed and "hf_a" not in printed
