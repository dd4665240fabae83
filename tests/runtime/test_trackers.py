import base64
import shutil
import sys
import types

import pytest

from slm_ray.runtime import trackers as wandb_tracker
from slm_ray.runtime.trackers import group_of, has_key, make_tracker, wandb_mode

ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def tracker_of(kind, folder, said, **changes):
    given = {"group": "g", "job_type": "search", "tags": ["fine"], "config": {"seed": 1}} | changes
    return make_tracker(kind, folder, say=said.append, **given)


def use(tracker, folder):
    """Everything a run does with a tracker."""
    (folder / "front.png").write_bytes(base64.b64decode(ONE_PIXEL))
    tracker.log({"objective/perplexity": 4.5}, step=0)
    tracker.log({"objective/perplexity": 4.25}, step=1)
    tracker.table("front", ["params", "perplexity"], [[1, 2.0], [3, 4.0]])
    tracker.image("picture", folder / "front.png")
    tracker.summary({"result/loss": 3.2})
    tracker.finish()


@pytest.fixture
def no_key(tmp_path, monkeypatch):
    """A machine that has never heard of W&B."""
    for name in ("API_KEY", "MODE", "PROJECT", "BASE_URL", "IDENTITY_TOKEN_FILE", "RUN_GROUP"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # so that it is put back
    monkeypatch.delenv("WANDB_DATA_DIR")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


class FakeRun:
    """A run that notes what it is told, and fails where it is told to."""

    def __init__(self, seen):
        self.seen, self.starting_step = seen, seen.server_step
        self.summary = types.SimpleNamespace(update=lambda values: self.call(lambda: seen.summary.update(values)))

    def call(self, note):
        if self.seen.fails:
            raise ConnectionError("nobody answers")
        note()

    def log(self, metrics, step=None):
        self.call(lambda: self.seen.logged.append((metrics, step)))

    def define_metric(self, name, step_metric=None, hidden=None):
        self.seen.axes[name] = step_metric

    def finish(self, exit_code=None):
        self.seen.exit_codes.append(exit_code)
        self.call(lambda: setattr(self.seen, "finished", self.seen.finished + 1))


@pytest.fixture
def fake_wandb(monkeypatch):
    """A stand-in for the package."""
    seen = types.SimpleNamespace(
        options=None, starts=[], logged=[], summary={}, axes={}, finished=0, fails=False, refuses=False, server_step=0,
        exit_codes=[],
    )  # fmt: skip

    def init(**options):
        seen.options = options
        seen.starts.append(options)
        if seen.refuses and options["mode"] == "online":
            raise TimeoutError("no answer from https://me:secret-word@example.org")
        return FakeRun(seen)

    module = types.ModuleType("wandb")
    module.Settings = lambda **options: options
    module.init = init
    module.Table = lambda columns, data, allow_mixed_types: ("table", columns, data)
    module.Image = lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_none_leaves_nothing(tmp_path):
    said = []
    use(tracker_of("none", tmp_path, said), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["front.png"] and not said


def test_wandb_gets_the_group_and_everything_logged(no_key, fake_wandb):
    said = []
    use(tracker_of("wandb", no_key, said), no_key)
    options = fake_wandb.options
    assert (options["group"], options["job_type"], options["tags"]) == ("g", "search", ["fine"])
    assert options["config"]["seed"] == 1 and options["config"]["environment"]["cpus"] >= 1
    assert fake_wandb.logged[:2] == [({"objective/perplexity": 4.5}, 0), ({"objective/perplexity": 4.25}, 1)]
    assert fake_wandb.logged[2][0]["front"] == ("table", ["params", "perplexity"], [[1, 2.0], [3, 4.0]])
    assert fake_wandb.logged[3][0]["picture"] == ("image", str(no_key / "front.png"))
    assert fake_wandb.summary == {"result/loss": 3.2}
    assert fake_wandb.axes["train/*"] == "tokens" and fake_wandb.axes["objective/*"] == "evaluations"
    assert fake_wandb.finished == 1
    assert len(said) == 1 and "wandb sync" in said[0]


def test_secrets_and_long_names_do_not_reach_wandb(no_key, fake_wandb):
    nested = {"address": "s3://me:key@host/x"}
    config = {"hub_token": "abc", "tokens": "20M", "store": nested, "n": [1, "hf_" + "a" * 20]}
    tracker = tracker_of("wandb", no_key, [], config=config, tags=["x" * 100, "", "fine", "fine"], group="g" * 200)
    tracker.table("t", ["a"], [["hf_" + "a" * 20]])
    tracker.finish()
    sent = fake_wandb.options["config"]
    assert (sent["hub_token"], sent["tokens"], sent["n"]) == ("[redacted]", "20M", [1, "[redacted]"])
    assert sent["store"] == {"address": "s3://[redacted]@host/x"}
    assert fake_wandb.logged[0][0]["t"][2] == [["[redacted]"]]
    assert fake_wandb.options["tags"] == ["x" * 64, "fine"] and len(fake_wandb.options["group"]) == 128


@pytest.mark.parametrize(
    "variables, netrc, mode",
    [
        ({}, None, "offline"),
        ({}, "machine api.wandb.ai login user password k", "online"),
        ({}, "not a netrc at all {", "offline"),
        ({"WANDB_BASE_URL": "https://own.example.org"}, "machine own.example.org login user password k", "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_MODE": "online"}, None, "offline"),  # it would ask for a key
        ({"WANDB_MODE": "disabled"}, None, "disabled"),
    ],
)
def test_wandb_is_online_only_with_a_key(variables, netrc, mode, no_key, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (no_key / "netrc").write_text(netrc)
    assert wandb_mode() == mode
    assert has_key() == (mode == "online" or "WANDB_API_KEY" in variables)


def test_a_resumed_run_is_the_same_one_and_another_folder_is_another(no_key, fake_wandb):
    for folder in ("a", "a", "b"):
        (no_key / folder).mkdir(exist_ok=True)
        tracker_of("wandb", no_key / folder, []).finish()
    first, again, other = [options["id"] for options in fake_wandb.starts]
    assert first == again != other
    assert all(options["resume"] == "allow" for options in fake_wandb.starts)


def test_what_wandb_has_is_not_sent_twice(no_key, fake_wandb, monkeypatch):
    tracker = tracker_of("wandb", no_key, [])
    assert tracker.wants_earlier
    tracker.finish()
    (no_key / f"wandb/offline-run-20260101_000000-{fake_wandb.options['id']}").mkdir(parents=True)
    again = tracker_of("wandb", no_key, [])
    assert not again.wants_earlier  # an earlier folder of the same run is sent before this one
    again.finish()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    fake_wandb.server_step = 3
    online = tracker_of("wandb", no_key, [])
    assert online.wants_earlier
    for step in range(5):
        online.log({"a": step}, step=step)
    online.finish()
    assert [step for _, step in fake_wandb.logged] == [3, 4]


def test_wandb_that_cannot_be_reached_is_kept_on_disk(no_key, fake_wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    fake_wandb.refuses = True
    said = []
    use(tracker_of("wandb", no_key, said), no_key)
    assert len(said) == 1 and "cannot be reached (TimeoutError" in said[0] and "secret-word" not in said[0]
    online, kept = fake_wandb.starts
    assert kept["mode"] == "offline" and f"wandb sync --id {online['id']} " in said[0]
    assert len(fake_wandb.logged) == 4


def test_one_thing_that_fails_does_not_lose_the_rest(no_key, fake_wandb):
    said = []
    tracker = tracker_of("wandb", no_key, said)
    fake_wandb.fails = True
    tracker.log({"a": 0}, step=0)
    fake_wandb.fails = False
    tracker.log({"a": 1}, step=1)
    tracker.finish()
    assert fake_wandb.logged == [({"a": 1}, 1)] and "ConnectionError" in said[-1]


def test_wandb_that_does_not_finish_in_time_says_how_to_send_the_rest(no_key, fake_wandb, monkeypatch):
    monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 0.0)
    said = []
    tracker_of("wandb", no_key, said).finish()
    assert "did not finish in time" in said[-1] and "wandb sync" in said[-1]


def test_wandb_is_left_alone_on_a_full_disk(no_key, fake_wandb, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1 << 20))
    said = []
    use(tracker_of("wandb", no_key, said), no_key)
    assert len(said) == 1 and "has only 1 MiB free" in said[0] and not fake_wandb.starts


def test_a_run_that_ends_in_an_exception_counts_as_failed(no_key, fake_wandb):
    tracker_of("wandb", no_key, []).finish()
    with pytest.raises(ZeroDivisionError):
        tracker = tracker_of("wandb", no_key, [])
        try:
            raise ZeroDivisionError
        finally:
            tracker.finish()
    assert fake_wandb.exit_codes == [0, 1]


def test_the_stages_of_a_pipeline_are_one_group(tmp_path):
    assert group_of(tmp_path / "mine" / "search") == "search"
    (tmp_path / "mine" / "search").mkdir(parents=True)
    (tmp_path / "mine" / "pipeline.json").write_text("{}")
    assert group_of(tmp_path / "mine" / "search") == "mine" and group_of(tmp_path / "mine") == "mine"
