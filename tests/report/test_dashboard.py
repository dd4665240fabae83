import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray import dashboard
from slm_ray.dashboard import CONFIG, SECTIONS, build
from slm_ray.records import metric_names as names
from slm_ray.runtime.commands import run_command
from tests.report.wandb_server import wandb_server

pytest.importorskip("wandb_workspaces")
KEYS = [key for panels in SECTIONS.values() for panel in panels for key in (panel.x, *panel.y) if key]


@pytest.fixture(autouse=True)
def no_key(tmp_path, monkeypatch):
    """A machine without a key; whoever asks the network for anything fails the test."""
    for name in ("API_KEY", "MODE", "BASE_URL", "IDENTITY_TOKEN_FILE", "ENTITY", "PROJECT"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("asked the network"))


def test_every_figure_and_option_that_a_panel_names_is_logged():
    import slm_ray.pretrain.config as pretrain

    source = Path(pretrain.__file__).parent
    text = "".join(path.read_text() for path in [*source.glob("*.py"), *(source.parent / "distill").glob("*.py")])
    for key in KEYS:
        option = key.removeprefix(CONFIG)
        assert option in text if key.startswith(CONFIG) else names.is_tracked(key), key


def test_wandbs_own_types_take_every_panel():
    built = build("", "p")
    assert [len(part.panels) for part in built.sections] == [len(panels) for panels in SECTIONS.values()]


@pytest.mark.parametrize(
    ("flags", "says"), [([], "there is no W&B key on this machine"), (["--projct"], "did you mean '--project'?")]
)
def test_what_cannot_be_done_gets_one_sentence(flags, says, capsys):
    assert run_command(dashboard.main, flags) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_what_wandb_refuses_is_said_without_secrets(monkeypatch, capsys):
    from wandb_workspaces.workspaces import Workspace

    key = "k" * 40
    monkeypatch.setenv("WANDB_API_KEY", key)

    def refuse(self):
        raise ConnectionError(f"nobody at https://api:{key}@example.org")

    monkeypatch.setattr(Workspace, "save", refuse)
    assert run_command(dashboard.main, ["--entity", "me"]) == 2
    said = capsys.readouterr().err
    assert "did not take the dashboard (ConnectionError" in said and key not in said


def test_without_the_extra_it_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert run_command(dashboard.main, ["--entity", "me"]) == 2
    assert "pip install 'slm-ray[wandb]'" in capsys.readouterr().err


@pytest.mark.slow
def test_wandbs_own_code_saves_what_was_built(tmp_path):
    with wandb_server() as (server, saved):
        environment = {**os.environ, "WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": server, "HOME": str(tmp_path)}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
        program = [sys.executable, "-m", "slm_ray.dashboard", "--entity", "me", "--project", "p"]
        done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{server}/me/p?nw=abc\n", done.stderr
    (sent,) = saved
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("me", "p", "slm_ray")
    plain = [key.removeprefix(CONFIG) for key in KEYS]
    assert all(json.dumps(key)[1:-1] in sent["spec"] for key in plain)
