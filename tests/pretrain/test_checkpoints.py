"""Checkpoints: whole or not at all, on local and remote storage, checked when they are opened."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile

import fsspec
import pytest

from slm_ray.config.errors import UserError
from slm_ray.pretrain.checkpoints import MANIFEST, Checkpoint, CheckpointFolder

BUCKET = "memory://bucket/runs/1"


class Bucket:
    """The files behind ``BUCKET``, which fsspec keeps in memory."""

    def __init__(self):
        self.files = fsspec.filesystem("memory")

    def path(self, name):
        return f"/bucket/runs/1/{name}"

    def change(self, name, change):
        self.files.pipe_file(self.path(name), change(self.files.cat_file(self.path(name))))

    def delete(self, name):
        self.files.rm_file(self.path(name))

    def names(self):
        return sorted(path.rpartition("/runs/1/")[2] for path in self.files.find("/bucket/runs/1"))


class Folder(Bucket):
    """The same of a local folder."""

    def __init__(self, root):
        self.root = root

    def change(self, name, change):
        (self.root / name).write_bytes(change((self.root / name).read_bytes()))

    def delete(self, name):
        (self.root / name).unlink()

    def names(self):
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())


@pytest.fixture(params=["path", "bucket"])
def place(request, tmp_path, monkeypatch):
    """A place to keep checkpoints in, and its files."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    if request.param == "bucket":
        fsspec.filesystem("memory").store.clear()
        return BUCKET, Bucket()
    root = tmp_path / "my runs"
    return root, Folder(root)


@pytest.fixture
def location(place):
    return place[0]


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
    assert saved == Checkpoint(step=30, info={"loss": 15.0, "note": "ä"}, files=saved.files)
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


def test_a_full_disk_leaves_the_earlier_ones(place, tmp_path):
    location, files = place
    folder = CheckpointFolder(location)
    folder.save(1, writer("1"), {})
    before = files.names()

    def full(place):
        writer("2")(place)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"):
        folder.save(2, full, {})
    with pytest.raises(ZeroDivisionError):
        folder.save(2, lambda place: (place / "a").write_text(str(1 // 0)), {})
    assert steps(folder) == [1] and files.names() == before and not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda files, name: files.change(name, lambda _: b"6" * 300), "is damaged"),
        (lambda files, name: files.change(name, lambda _: b"6" * 299), "has 299 bytes instead of 300"),
        (lambda files, name: files.delete(name), "is missing"),
    ],
)
def test_a_damaged_file_is_named(place, damage, words):
    location, files = place
    folder = CheckpointFolder(location)
    folder.save(7, writer("777"), {})
    damage(files, "step-00000007/weights.bin")
    with pytest.raises(UserError, match=words) as caught, folder.open(folder.latest()):
        pass
    assert "weights.bin" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(b'"step": 8', b'"step": 9'),
        lambda text: text.replace(b"weights.bin", b"../step-00000007/weights.bin"),
    ],
)
def test_a_folder_without_a_valid_manifest_is_no_checkpoint(place, change):
    location, files = place
    folder = CheckpointFolder(location)
    for step in (7, 8):
        folder.save(step, writer("x"), {})
    files.change(f"step-00000008/{MANIFEST}", change)
    assert steps(folder) == [7] and folder.latest().step == 7


def test_folders_of_others_are_left_alone(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(4, writer("4"), {})
    for name in ("step-00000003", "step-12", "best", ".step-00000003.notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_text("theirs")
    CheckpointFolder(tmp_path).save(5, writer("5"), {})
    folder.prune(1, None)
    assert steps(folder) == [5]
    assert len(list(tmp_path.rglob("model.bin"))) == 4


KILLED = """
import os, signal, sys
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
    folder = CheckpointFolder(tmp_path)
    assert steps(folder) == [1]
    folder.save(2, writer("2"), {})
    assert not rest.exists() and steps(folder) == [1, 2]


def test_an_upload_that_breaks_off_leaves_the_earlier_ones(monkeypatch):
    fsspec.filesystem("memory").store.clear()
    files, done = fsspec.filesystem("memory"), []
    folder = CheckpointFolder(BUCKET)
    folder.save(1, writer("1"), {})
    true = type(files).put_file

    def put(self, *arguments, **options):
        done.append(arguments)
        if len(done) == 3:
            raise OSError("When uploading part: AWS Error NETWORK_CONNECTION; Details: a\nb")
        return true(self, *arguments, **options)

    monkeypatch.setattr(type(files), "put_file", put)
    with pytest.raises(UserError, match=r"memory://bucket/runs/1 cannot be used \(When uploading part") as caught:
        folder.save(2, writer("2"), {})
    assert "\n" not in str(caught.value) and steps(folder) == [1]
    CheckpointFolder(BUCKET).save(2, writer("2"), {})
    assert steps(folder) == [1, 2]
    with folder.open(folder.latest()) as opened:
        assert (opened / "weights.bin").read_text() == "2" * 100


def test_addresses_that_lead_nowhere_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="foo://bucket/x cannot be used"):
        CheckpointFolder("foo://bucket/x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file of that name is in the way"):
        CheckpointFolder(tmp_path / "file").save(1, writer("1"), {})
    with pytest.raises(UserError, match="a part of the path is a file"):
        CheckpointFolder(tmp_path / "file" / "x").save(1, writer("1"), {})
