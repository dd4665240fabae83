"""Checkpoints: whole or not at all, on local and remote storage, checked when they are opened."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import fs

from slm_ray.config.errors import UserError
from slm_ray.pretrain import storage
from slm_ray.pretrain.checkpoints import Checkpoint, CheckpointFolder
from slm_ray.pretrain.storage import MANIFEST
from slm_ray.runtime.remote import open_filesystem

BUCKET = "s3://bucket/runs/1"


@pytest.fixture(params=["path", "file", "bucket"])
def location(request, tmp_path, monkeypatch):
    """A place to keep checkpoints in; behind the bucket is a folder, reached as S3 would be."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    if request.param == "path":
        return tmp_path / "my runs"
    if request.param == "file":
        return f"file://{tmp_path}/my%20runs"
    behind_a_bucket(tmp_path, monkeypatch)
    return BUCKET


def behind_a_bucket(tmp_path, monkeypatch, **changes):
    """Have the module reach a folder where the bucket's address is given, as it would reach S3."""
    bucket = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    found = {BUCKET: (bucket, "my runs")}
    monkeypatch.setattr(storage, "open_filesystem", lambda address: found.get(address) or open_filesystem(address))
    monkeypatch.setattr(storage, "fs", SimpleNamespace(**{**vars(fs), **changes}))


def writer(text):
    def write(folder):
        (folder / "weights.bin").write_text(text * 100)
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "state.json").write_text(text)
        (folder / "empty").touch()

    return write


def steps(folder):
    return [checkpoint.step for checkpoint in folder.all()]


def test_what_is_saved_is_found_in_order_and_opened_unchanged(location):
    folder = CheckpointFolder(location)
    assert (folder.all(), folder.latest()) == ([], None)
    for step in (5, 120, 30):
        saved = folder.save(step, writer(str(step)), {"loss": step / 2, "note": "ä"})
    assert saved == Checkpoint(30, {"loss": 15.0, "note": "ä"}, saved.files)
    again = CheckpointFolder(location)
    assert steps(again) == [5, 30, 120] and again.all()[1] == saved
    assert again.latest().name == "step-00000120"
    assert [file.name for file in saved.files] == ["deep/er/state.json", "empty", "weights.bin"]
    with again.open(again.latest()) as opened:
        assert (opened / "weights.bin").read_text() == "120" * 100
        assert (opened / "deep/er/state.json").read_text() == "120"
        assert (opened / "empty").read_bytes() == b""


def test_the_same_step_is_replaced(location):
    folder = CheckpointFolder(location)
    folder.save(1, writer("old"), {})
    folder.save(1, lambda place: (place / "only").write_text("new"), {"n": 2})
    assert steps(folder) == [1] and folder.latest().info == {"n": 2}
    with folder.open(folder.latest()) as opened:
        assert [path.name for path in opened.iterdir() if path.name != MANIFEST] == ["only"]


def test_the_last_ones_and_the_best_are_kept(location):
    folder = CheckpointFolder(location)
    for step in range(1, 7):
        folder.save(step, writer("x"), {})
    folder.prune(keep_last=2, best=3)
    assert steps(folder) == [3, 5, 6]
    folder.prune(keep_last=2, best=6)
    assert steps(folder) == [5, 6]
    folder.prune(keep_last=4, best=None)
    assert steps(folder) == [5, 6]
    with pytest.raises(UserError, match="at least 1 checkpoint"):
        folder.prune(keep_last=0, best=None)


def test_a_full_disk_leaves_the_earlier_ones(location, tmp_path):
    folder = CheckpointFolder(location)
    folder.save(1, writer("1"), {})

    def full(place):
        writer("2")(place)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"):
        folder.save(2, full, {})
    assert steps(folder) == [1]
    with folder.open(folder.latest()):
        pass
    assert not list((tmp_path / "my runs").glob(".*")) and not list((tmp_path / "scratch").iterdir())


def test_what_the_writer_raises_goes_on_and_nothing_appears(location, tmp_path):
    folder = CheckpointFolder(location)
    with pytest.raises(ZeroDivisionError):
        folder.save(2, lambda place: (place / "a").write_text(str(1 // 0)), {})
    assert folder.all() == [] and not list((tmp_path / "my runs").iterdir())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text("6" * 300), "is damaged"),
        (lambda path: path.write_text("6" * 299), "has 299 bytes instead of 300"),
        (lambda path: path.unlink(), "is missing|cannot be used"),
    ],
)
def test_a_damaged_file_is_named(location, tmp_path, damage, words):
    folder = CheckpointFolder(location)
    folder.save(7, writer("777"), {})
    damage(tmp_path / "my runs" / "step-00000007" / "weights.bin")
    with pytest.raises(UserError, match=words) as caught, folder.open(folder.latest()):
        pass
    assert "weights.bin" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"step": 8', '"step": 9'),
        lambda text: text.replace("weights.bin", "../step-00000007/weights.bin"),
        lambda text: text.replace("weights.bin", "/etc/passwd"),
        lambda text: text.replace("num_bytes", "bytes"),
    ],
)
def test_a_folder_without_a_valid_manifest_is_no_checkpoint(location, tmp_path, change):
    folder = CheckpointFolder(location)
    for step in (7, 8):
        folder.save(step, writer("x"), {})
    manifest = tmp_path / "my runs" / "step-00000008" / MANIFEST
    manifest.write_text(change(manifest.read_text()))
    assert steps(folder) == [7] and folder.latest().step == 7


def test_folders_of_others_are_left_alone(location, tmp_path):
    folder = CheckpointFolder(location)
    folder.save(4, writer("4"), {})
    for name in ("step-00000003", "step-12", "best", ".step-00000003.notes"):
        (tmp_path / "my runs" / name).mkdir()
        (tmp_path / "my runs" / name / "model.bin").write_text("theirs")
    CheckpointFolder(location).save(5, writer("5"), {})
    folder.prune(1, None)
    assert steps(folder) == [5]
    assert len(list((tmp_path / "my runs").rglob("model.bin"))) == 4


KILLED = """
import os, signal, sys
from pathlib import Path
from slm_ray.pretrain.checkpoints import CheckpointFolder
folder = CheckpointFolder(sys.argv[1])
folder.save(1, lambda place: (place / "a").write_text("1"), {})
def write(place):
    (place / "a").write_text("2")
    os.kill(os.getpid(), signal.SIGKILL)
folder.save(2, write, {})
"""


def test_a_killed_writer_leaves_what_was_whole_and_its_rest_goes_at_the_next_start(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -9
    (rest,) = tmp_path.glob(".*")
    alive = tmp_path / f".step-00000009.{os.getpid()}-01234567.tmp"
    alive.mkdir()
    folder = CheckpointFolder(tmp_path)
    assert steps(folder) == [1]
    folder.save(2, writer("2"), {})
    assert not rest.exists() and alive.exists() and steps(folder) == [1, 2]


def test_an_upload_that_breaks_off_leaves_the_earlier_ones_and_is_cleaned_up(tmp_path, monkeypatch):
    done = []

    def copy(*arguments):
        done.append(arguments)
        if len(done) == 7:  # the third file of the second checkpoint
            raise OSError("When uploading part: AWS Error NETWORK_CONNECTION; Details: a\nb")
        return fs.copy_files(*arguments)

    behind_a_bucket(tmp_path, monkeypatch, copy_files=copy)
    folder = CheckpointFolder(BUCKET)
    folder.save(1, writer("1"), {})
    with pytest.raises(UserError, match=r"s3://bucket/runs/1 cannot be used \(When uploading part.*NETWORK") as caught:
        folder.save(2, writer("2"), {})
    assert "\n" not in str(caught.value)
    assert steps(folder) == [1] and (tmp_path / "my runs" / "step-00000002").exists()
    again = CheckpointFolder(BUCKET)
    again.save(3, writer("3"), {})
    assert {path.name for path in (tmp_path / "my runs").iterdir()} == {"step-00000001", "step-00000003"}
    again.save(2, writer("2"), {})
    assert steps(folder) == [1, 2, 3]


def test_staging_folders_of_dead_processes_go_at_the_next_start(tmp_path, monkeypatch):
    behind_a_bucket(tmp_path, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {f"slm_ray-checkpoint.{gone.pid}-x": False, f"slm_ray-checkpoint.{os.getpid()}-x": True, "other": True}
    for name in names:
        (tmp_path / name).mkdir()
    CheckpointFolder(BUCKET).save(1, writer("1"), {})
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_pyarrows_own_test_storage_works_too():
    folder = CheckpointFolder("mock:///anything")
    folder.save(3, writer("3"), {})
    with folder.open(folder.latest()) as opened:
        assert (opened / "weights.bin").read_text() == "3" * 100


def test_a_relative_path_stays_the_same_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = CheckpointFolder("here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.save(1, writer("1"), {})
    assert (tmp_path / "here" / "step-00000001" / MANIFEST).is_file()


def test_addresses_that_lead_nowhere_are_one_sentence(tmp_path):
    for location in ("foo://bucket/x", "file://host/x"):
        with pytest.raises(UserError, match=f"{location} cannot be used"):
            CheckpointFolder(location)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file of that name is in the way"):
        CheckpointFolder(tmp_path / "file").save(1, writer("1"), {})
    with pytest.raises(UserError, match="a part of the path is a file"):
        CheckpointFolder(tmp_path / "file" / "x").save(1, writer("1"), {})


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_one_sentence_without_the_login():
    address = "s3://name:longsecretword@bucket/x?scheme=http&region=here&endpoint_override=127.0.0.1:1"
    with pytest.raises(UserError, match="NETWORK_CONNECTION") as caught:
        CheckpointFolder(address).save(1, writer("1"), {})
    assert "longsecretword" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_manifest_lists_sizes_and_digests(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(2, lambda place: (place / "a").write_bytes(b"abc"), {"loss": 1.5})
    assert json.loads((tmp_path / "step-00000002" / MANIFEST).read_text()) == {
        "step": 2, "info": {"loss": 1.5}, "files": [{
            "name": "a", "num_bytes": 3,
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }],
    }  # fmt: skip
    assert Path(folder.location) == tmp_path
