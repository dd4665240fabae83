"""Storage anywhere: a run kept a second time and fetched from there, and folders for other machines."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import fsspec
import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.run import RunRecord
from slm_ray.runtime import shared
from slm_ray.runtime.mirror import Mirror, bring_back
from slm_ray.runtime.runfolder import CONFIG_FILE, RunFolder, find_run
from slm_ray.runtime.shared import SHARED_VARIABLE, local_copy, publish, sharing
from slm_ray.runtime.storage import Place


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path):
    """A place: a folder, and what fsspec has like a bucket."""
    if request.param == "folder":
        yield str(tmp_path / "storage")
        return
    yield "memory://bucket/runs"
    fsspec.filesystem("memory").store.clear()


def run_record(options):
    """A run with options."""
    return RunRecord(stage="try", command="try", options=options)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def test_a_run_comes_back_as_it_was(storage, tmp_path):
    run = tmp_path / "run"
    with_mirror = RunFolder.create(run, run_record({"trials": 8, "storage": storage}))
    (run / "trials.jsonl").write_text('{"trial": 0}\n')
    (run / "winners" / "0").mkdir(parents=True)
    (run / "winners" / "0" / "model.safetensors").write_bytes(b"w" * 3000)
    with_mirror.close()
    before = tree(run)
    run.rename(tmp_path / "another machine lost it")
    with pytest.raises(UserError, match=r"run holds a run already: continue it with --resume"):
        RunFolder.create(run, run_record({"trials": 9, "storage": storage}))
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
    put, write = Place.put, Place.write
    monkeypatch.setattr(Place, "put", lambda self, path, name: (names.append(name), put(self, path, name)))
    monkeypatch.setattr(Place, "write", lambda self, name, data: (names.append(name), write(self, name, data)))
    for number, name in enumerate(["z.json", "a.safetensors", "m.jsonl"]):
        (run / name).write_text(name)
        os.utime(run / name, ns=(number, number))
    mirror._round()
    assert names == ["z.json", "a.safetensors", "m.jsonl"]
    mirror._round()
    assert len(names) == 3


def test_half_lines_wait(storage, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    mirror = Mirror(run, storage, print)
    for text, there in (("1\n2", "1\n"), ("1\n2\n3\n", "1\n2\n3\n"), ("1\n", "1\n")):
        (run / "trials.jsonl").write_text(text)
        mirror._round()
        assert Place(mirror.place).read("trials.jsonl").decode() == there


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
    put = Place.put

    def failing(self, path, name):
        if fails:
            raise UserError("the storage is away")
        put(self, path, name)

    monkeypatch.setattr(Place, "put", failing)
    assert not mirror._try() and not mirror._try()
    fails.clear()
    assert mirror._try()
    assert said == ["the run goes on without its copy for now: the storage is away", f"{mirror.place} is reached again"]


def test_runs_inside_of_a_mirrored_one_are_not_mirrored_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_RAY_STORAGE", str(tmp_path / "storage"))
    outer = RunFolder.create(tmp_path / "pipeline", run_record({}))
    inner = RunFolder.create(tmp_path / "pipeline" / "search", run_record({}))
    inner.close()
    outer.close()
    assert [path.name for path in (tmp_path / "storage").iterdir()] == ["pipeline"]
    assert (tmp_path / "storage" / "pipeline" / "search" / CONFIG_FILE).exists()
    assert not (tmp_path / "pipeline" / ".mirrored").exists()


def test_a_mistake_found_before_any_work_leaves_nothing_there_either(storage, tmp_path):
    folder = RunFolder.create(tmp_path / "run", run_record({"storage": storage}))
    folder.forget()
    folder.close()
    assert not (tmp_path / "run").exists() and not bring_back(tmp_path / "run", storage)


def test_checkpoints_that_lie_at_the_storage_stay_there(tmp_path):
    place = tmp_path / "storage" / "run"
    for name in ("config.json", "winner-0/steps.jsonl", "winner-0/step-00000100/model.safetensors"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
    assert bring_back(tmp_path / "run", str(tmp_path / "storage"))
    assert set(tree(tmp_path / "run")) == {"config.json", "winner-0/steps.jsonl"}


def test_bad_places(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--storage s3:// names no place: give"):
        RunFolder.create(tmp_path / "a", run_record({"storage": "s3://"}))
    with pytest.raises(UserError, match="the storage nothing://x/b cannot be used"):
        RunFolder.create(tmp_path / "b", run_record({"storage": "nothing://x"}))
    with pytest.raises(UserError, match=r"holds a login, .* give it by the environment"):
        RunFolder.create(tmp_path / "b", run_record({"storage": "s3://key:secretword@bucket/x"}))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"holds no run to resume .*storage has none of that name"):
        find_run(tmp_path / "c", str(tmp_path / "storage"))

    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.log").write_text("x\n")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"storage/d cannot be used .*No space left on device"):
        Mirror(tmp_path / "d", str(tmp_path / "storage"), print)._round()


class TestShared:
    """Folders of the command's machine, for workers that may not see them."""

    @pytest.fixture
    def teacher(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shared, "_is_needed_elsewhere", lambda *_: True)
        folder = tmp_path / "teacher"
        (folder / "bfloat16").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
        (folder / "bfloat16" / "model.safetensors").write_bytes(b"made here")
        (folder / ".lock").write_text("")
        return folder

    def test_nothing_is_copied_with_one_machine(self, teacher):
        assert publish(teacher) == teacher == local_copy(teacher)
        assert local_copy(Path("/nowhere")) == Path("/nowhere")

    def test_a_machine_fetches_a_folder_once(self, storage, teacher, tmp_path, monkeypatch):
        with sharing(storage) as environment:
            publish(teacher)
            publish(teacher / "config.json")
            monkeypatch.setenv(SHARED_VARIABLE, environment[SHARED_VARIABLE])
            assert local_copy(teacher) == teacher  # a disk that machines share
            teacher.rename(tmp_path / "of another machine")
            copy = local_copy(teacher)
            assert sorted(path.name for path in copy.iterdir()) == ["config.json", "model.safetensors"]
            assert (copy / "model.safetensors").read_bytes() == bytes(range(256)) * 40
            one = local_copy(teacher / "config.json")
            assert one.name == "config.json" and one.read_text() == "{}"
            monkeypatch.setattr(Place, "get", lambda *_: 1 / 0)
            assert local_copy(teacher) == copy and str(copy).startswith(str(tmp_path / "cache"))
        assert {name.split("/")[1].rpartition("-")[0] for name in Place(storage).sizes()} == {"teacher", "config.json"}

    def test_a_folder_that_changed_is_another_one(self, storage, teacher, tmp_path, monkeypatch):
        with sharing(storage) as environment:
            monkeypatch.setenv(SHARED_VARIABLE, environment[SHARED_VARIABLE])
            publish(teacher)
            (teacher / "config.json").write_text(json.dumps({"changed": 1}))
            publish(teacher)
            teacher.rename(tmp_path / "gone")
            assert "changed" in (local_copy(teacher) / "config.json").read_text()

    def test_without_a_storage_there_is_one_sentence(self, teacher, monkeypatch):
        says = r"other machines of the cluster do not see .*teacher: give --storage, a folder that all of them see or a"
        with sharing(None) as environment:
            assert environment == {}
            with pytest.raises(UserError, match=says):
                publish(teacher)
        monkeypatch.setattr(shared, "_is_on_another_machine", lambda: True)
        assert local_copy(teacher) == teacher
        with pytest.raises(UserError, match="nothing is not on this machine of the cluster: give --storage"):
            local_copy(teacher / "nothing")
