import base64
import json
import sys
import types

import pytest

from slm_ray.core.trackers import make_tracker

ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def tracker_of(kind, folder, said):
    return make_tracker(kind, folder, group="g", job_type="search", tags=["fine"], config={"seed": 1}, say=said.append)


def use(tracker, folder):
    """Everything a run does with a tracker."""
    (folder / "front.png").write_bytes(base64.b64decode(ONE_PIXEL))
    tracker.log({"objective/perplexity": 4.5}, step=0)
    tracker.log({"objective/perplexity": 4.25}, step=1)
    tracker.table("front", ["params", "perplexity"], [[1, 2.0], [3, 4.0]])
    tracker.image("picture", folder / "front.png")
    tracker.finish()


@pytest.fixture
def no_key(tmp_path, monkeypatch):
    """A machine that has never heard of W&B."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


@pytest.fixture
def fake_wandb(monkeypatch):
    """A stand-in for the package, whose run notes what it is told and can be made to fail."""
    seen = types.SimpleNamespace(options=None, logged=[], finished=0, fails=False)

    def call(note):
        if seen.fails:
            raise ConnectionError("nobody answers")
        note()

    run = types.SimpleNamespace(
        log=lambda metrics, step=None: call(lambda: seen.logged.append((metrics, step))),
        finish=lambda: call(lambda: setattr(seen, "finished", seen.finished + 1)),
    )
    module = types.ModuleType("wandb")
    module.Settings = lambda **options: options
    module.init = lambda **options: setattr(seen, "options", options) or run
    module.Table = lambda columns, data: ("table", columns, data)
    module.Image = lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_none_leaves_nothing(tmp_path):
    said = []
    use(tracker_of("none", tmp_path, said), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["front.png"] and not said


def test_jsonl_has_a_line_per_step_and_goes_on_after_a_restart(tmp_path):
    for _ in range(2):
        use(tracker_of("jsonl", tmp_path, []), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == 2 * [{"step": 0, "objective/perplexity": 4.5}, {"step": 1, "objective/perplexity": 4.25}]


def test_wandb_gets_the_group_and_everything_logged(no_key, fake_wandb):
    said = []
    use(tracker_of("wandb", no_key, said), no_key)
    options = fake_wandb.options
    assert (options["group"], options["job_type"], options["tags"], options["config"]) == (
        "g",
        "search",
        ["fine"],
        {"seed": 1},
    )
    assert fake_wandb.logged[:2] == [({"objective/perplexity": 4.5}, 0), ({"objective/perplexity": 4.25}, 1)]
    assert fake_wandb.logged[2][0]["front"] == ("table", ["params", "perplexity"], [[1, 2.0], [3, 4.0]])
    assert fake_wandb.logged[3][0]["picture"] == ("image", str(no_key / "front.png"))
    assert fake_wandb.finished == 1
    assert len(said) == 1 and "wandb sync" in said[0]


@pytest.mark.parametrize(
    "variables, netrc, mode",
    [
        ({}, None, "offline"),
        ({}, "machine example.org login a password b", "offline"),
        ({}, "machine api.wandb.ai login user password k", "online"),
        ({"WANDB_API_KEY": "k"}, None, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_MODE": "disabled"}, None, "disabled"),
    ],
)
def test_wandb_is_online_only_with_a_key(variables, netrc, mode, no_key, fake_wandb, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (no_key / "netrc").write_text(netrc)
    said = []
    tracker_of("wandb", no_key, said)
    assert fake_wandb.options["mode"] == mode
    assert bool(said) == (mode == "offline")


def test_wandb_that_fails_says_so_once_and_the_run_goes_on(no_key, fake_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    said = []
    tracker = tracker_of("wandb", no_key, said)
    fake_wandb.fails = True
    use(tracker, no_key)
    assert len(said) == 1 and "ConnectionError: nobody answers" in said[0] and "goes on without it" in said[0]
    assert not fake_wandb.logged


def test_wandb_that_is_not_installed_says_so_once(no_key, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = []
    use(tracker_of("wandb", no_key, said), no_key)
    assert len(said) == 1 and "not available" in said[0]


@pytest.mark.slow
def test_wandb_itself_works_offline_without_a_key_or_a_prompt(no_key, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for something"))
    said = []
    use(tracker_of("wandb", no_key, said), no_key)
    assert len(said) == 1 and "offline" in said[0]
    assert list(no_key.glob("wandb/offline-run-*/*.wandb"))
    printed = capfd.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
