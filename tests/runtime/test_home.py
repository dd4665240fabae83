"""The command's files, for workers on machines that do not see them."""

from __future__ import annotations

import pytest

from slm_ray.runtime import deliveries, home
from slm_ray.runtime.deliveries import outbox
from slm_ray.runtime.home import home_of, pinned_to_home
from tests.runtime.elsewhere import Elsewhere


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "cache"))
    disk = tmp_path / "disk"
    (disk / "teacher" / "bfloat16").mkdir(parents=True)
    (disk / "teacher" / "config.json").write_text("{}")
    (disk / "teacher" / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (disk / "teacher" / "bfloat16" / "model.safetensors").write_bytes(b"made here")
    (disk / "teacher" / ".lock").write_text("")
    return disk


@pytest.fixture
def away(disk, monkeypatch):
    """This process on another machine than the one whose disk it is."""
    away = Elsewhere(disk)
    monkeypatch.setattr(home, "away", lambda: away)
    monkeypatch.setattr(deliveries, "_CHUNK_BYTES", 4096)
    return away


class TestWithoutACluster:
    def test_folders_are_used_as_they_are(self, disk):
        assert home_of(disk) is None
        with outbox(disk) as folder:
            assert folder == disk
        assert pinned_to_home(1) == {"num_cpus": 1}


class TestOutbox:
    def test_files_arrive_whole_and_in_order(self, away, disk):
        with outbox(disk / "store") as folder:
            (folder / "part.safetensors").write_bytes(b"x" * 10_000)
            (folder / "part.json").write_text("{}")
            (folder / "empty").write_bytes(b"")
        away.back()
        found = {path.name: path.stat().st_size for path in (disk / "store").iterdir()}
        assert found == {"part.safetensors": 10_000, "part.json": 2, "empty": 0}
        assert away.calls.count("_append") == 5 and away.calls.count("_take_name") == 3

    def test_a_block_that_fails_sends_nothing(self, away, disk):
        with pytest.raises(ZeroDivisionError), outbox(disk / "store") as folder:
            (folder / "part.json").write_text("{}")
            1 / 0  # noqa: B018
        away.back()
        assert list((disk / "store").iterdir()) == []
