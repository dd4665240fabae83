"""A run's folder kept a second time, and fetched from there."""

from __future__ import annotations

import errno

import pytest
from pyarrow import fs

from slm_ray.config.errors import UserError
from slm_ray.runtime import mirror as module
from slm_ray.runtime.mirror import Mirror, bring_back
from slm_ray.runtime.runfolder import CONFIG_FILE, RunFolder, find_run

BUCKET = "s3://bucket/runs"


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path, monkeypatch):
    """A place; behind the bucket is a folder, reached as S3 would be."""
    if request.param == "folder":
        return str(tmp_path / "storage")
    bucket = fs.SubTreeFileSystem(str(tmp_path / "behind"), fs.LocalFileSystem())
    (tmp_path / "behind").mkdir()
    monkeypatch.setattr(module, "open_filesystem", lambda address: (bucket, address.removeprefix("s3://")))
    return BUCKET


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def test_a_run_comes_back_as_it_was(storage, tmp_path):
    run = tmp_path / "run"
    with_mirror = RunFolder.create(run, {"trials": 8, "storage": storage})
    (run / "trials.jsonl").write_text('{"trial": 0}\n')
    (run / "winners" / "0").mkdir(parents=True)
    (run / "winners" / "0" / "model.safetensors").write_bytes(b"w" * 3000)
    with_mirror.close()
    before = tree(run)
    run.rename(tmp_path / "another machine lost it")
    with pytest.raises(UserError, match=r"run holds a run already: continue it with --resume"):
        RunFolder.create(run, {"trials": 9, "storage": storage})
    find_run(run, storage)
    assert tree(run) == before and {"config.json", "environment.json", "trials.jsonl"} < set(before)
    again = RunFolder.open_existing(run)  # its config says where its copy is
    while "winners/0/model.safetensors" not in again._mirror._copied:
        pass  # its first round is under way
    with (run / "trials.jsonl").open("a") as file:
        file.write('{"trial": 1}\n')
    (run / "winners" / "0" / "model.safetensors").unlink()
    again.close()
    other = tmp_path / "other" / "run"
    assert bring_back(other, storage)
    assert tree(other) == tree(run)
    assert (other / "trials.jsonl").read_text().count("\n") == 2 and not (other / "winners").exists()


def test_files_are_copied_in_the_order_in_which_they_were_written(storage, tmp_path, monkeypatch):
    run, names = tmp_path / "run", []
    run.mkdir()
    mirror = Mirror(run, storage, print)
    put = module._Files.put
    monkeypatch.setattr(module._Files, "put", lambda self, path, name: (names.append(name), put(self, path, name)))
    for number, name in enumerate(["z.json", "a.safetensors", "m.jsonl"]):
        (run / name).write_text(name)
        import os

        os.utime(run / name, ns=(number, number))
    mirror._round()
    assert names == ["z.json", "a.safetensors", "m.jsonl"]
    mirror._round()
    assert len(names) == 3


def test_weights_that_are_there_do_not_go_again(storage, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(b"w" * (1 << 20))
    (run / "small.json").write_text("{}")
    first = Mirror(run, storage, print)
    first.start()
    first.stop()
    assert set(Mirror(run, storage, print)._copied) == {"model.safetensors"}


def test_a_storage_that_fails_for_a_while(storage, tmp_path, monkeypatch):
    run, said, fails = tmp_path / "run", [], [True]
    run.mkdir()
    (run / "a.json").write_text("{}")
    mirror = Mirror(run, storage, said.append)
    put = module._Files.put

    def failing(self, path, name):
        if fails:
            raise UserError("the storage is away")
        put(self, path, name)

    monkeypatch.setattr(module._Files, "put", failing)
    assert not mirror._try() and not mirror._try()
    fails.clear()
    assert mirror._try()
    assert said == ["the run goes on without its copy for now: the storage is away", f"{mirror.place} is reached again"]


def test_a_storage_that_stays_away_is_said_at_the_end(storage, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (run / "a.json").write_text("{}")
    mirror = Mirror(run, storage, lambda _: None)

    def full(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_TRY_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(module._Files, "put", full)
    mirror.start()
    with pytest.raises(UserError, match=r"run is as it should be, but its copy is not whole: the disk is full; then"):
        mirror.stop()


def test_runs_inside_of_a_mirrored_one_are_not_mirrored_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_RAY_STORAGE", str(tmp_path / "storage"))
    outer = RunFolder.create(tmp_path / "pipeline", {})
    inner = RunFolder.create(tmp_path / "pipeline" / "search", {})
    inner.close()
    outer.close()
    assert [path.name for path in (tmp_path / "storage").iterdir()] == ["pipeline"]
    assert (tmp_path / "storage" / "pipeline" / "search" / CONFIG_FILE).exists()
    assert not (tmp_path / "pipeline" / ".mirrored").exists()


def test_a_mistake_found_before_any_work_leaves_nothing_there_either(storage, tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"storage": storage})
    folder.forget()
    folder.close()
    assert not (tmp_path / "run").exists() and not bring_back(tmp_path / "run", storage)


def test_checkpoints_that_lie_at_the_storage_stay_there(tmp_path):
    place = tmp_path / "storage" / "run"
    for name in ("config.json", "winner-0/metrics.jsonl", "winner-0/step-00000100/model.safetensors"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
    assert bring_back(tmp_path / "run", str(tmp_path / "storage"))
    assert set(tree(tmp_path / "run")) == {"config.json", "winner-0/metrics.jsonl"}


def test_bad_places(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--storage s3:// names no place: give"):
        RunFolder.create(tmp_path / "a", {"storage": "s3://"})
    with pytest.raises(UserError, match="the storage nothing://x/b cannot be used"):
        RunFolder.create(tmp_path / "b", {"storage": "nothing://x"})
    with pytest.raises(UserError, match=r"holds a login, .* give it by the environment"):
        RunFolder.create(tmp_path / "b", {"storage": "s3://key:secretword@bucket/x"})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"holds no run to resume .*storage has none of that name"):
        find_run(tmp_path / "c", str(tmp_path / "storage"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.log").write_text("x")
    with pytest.raises(UserError, match=r"copying .*run.log: the disk is full"):
        Mirror(tmp_path / "d", str(tmp_path / "storage"), print)._round()
