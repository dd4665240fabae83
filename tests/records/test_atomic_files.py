import errno
import os
from pathlib import Path

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.files import (
    explain_os_error,
    read_json,
    whole_folder,
    write_json,
    write_text,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_text_and_json_come_back_as_written(tmp_path):
    value = {"name": "注意 é", "sizes": [1, 2.5, None, True]}
    write_json(tmp_path / "new" / "folder" / "a.json", value)
    write_text(tmp_path / "a.txt", "one\ntwo\n")
    assert read_json(tmp_path / "new" / "folder" / "a.json") == value
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch, failing):
    write_text(tmp_path / "front.json", "old")
    monkeypatch.setattr(os, failing, _disk_full)
    with pytest.raises(UserError, match=r"writing .*front\.json: the disk is full: free some space"):
        write_text(tmp_path / "front.json", "new")
    assert _names(tmp_path) == ["front.json"]
    assert (tmp_path / "front.json").read_text() == "old"


def test_a_path_through_a_file_is_one_sentence(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match=r"a\.json: a file of that name is in the way"):
        write_text(tmp_path / "file" / "a.json", "x")
    with (
        pytest.raises(UserError, match=r"folder: a part of the path is a file"),
        whole_folder(tmp_path / "file" / "folder"),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_system_errors_say_what_was_being_done_and_what_to_do(number, fix):
    message = str(explain_os_error(OSError(number, os.strerror(number)), "writing runs/x"))
    assert message.startswith("writing runs/x: ")
    assert fix in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_folder_appears_whole_and_replaces_an_older_one(tmp_path):
    for text in ("first", "second"):
        with whole_folder(tmp_path / "model") as folder:
            write_text(folder / text, text)
            assert folder != tmp_path / "model"
    assert _names(tmp_path) == ["model"]
    assert _names(tmp_path / "model") == ["second"]


def test_a_folder_whose_filling_fails_does_not_appear_and_the_older_one_stays(tmp_path):
    with whole_folder(tmp_path / "model") as folder:
        write_text(folder / "weights", "old")
    with pytest.raises(RuntimeError, match="half way"), whole_folder(tmp_path / "model") as folder:
        write_text(folder / "weights", "new")
        raise RuntimeError("half way")
    with pytest.raises(UserError, match="the disk is full"), whole_folder(tmp_path / "model") as folder:
        _disk_full()
    assert _names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_what_is_written_follows_the_umask(mask, mode, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    before = os.umask(mask)
    try:
        with whole_folder(tmp_path / "model") as folder:
            save_file({"a": np.zeros(3)}, folder / "model.safetensors")  # for its owner alone, left to itself
            (folder / "sub").mkdir()
            (folder / "sub" / "config.json").write_text("{}")
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 and {path.stat().st_mode & 0o777 for path in files} == {mode}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written_names_its_variable(number, tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tmp_path / "home" / "cache"))
    for path in (tmp_path / "home", tmp_path / "home" / "cache" / "teachers" / "x"):
        message = str(explain_os_error(OSError(number, "no", str(path)), f"writing {path}"))
        assert message.endswith(": set SLM_RAY_CACHE to a folder you can write to")
    assert "SLM_RAY_CACHE" not in str(explain_os_error(OSError(number, "no", "/elsewhere"), "writing"))
