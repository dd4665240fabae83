import errno
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.config.errors import UserError
from slm_ray.records.base import read_record
from slm_ray.records.run import RunRecord
from slm_ray.runtime.runfolder import CONFIG_FILE, ENVIRONMENT_FILE, RunFolder

CONFIG = RunRecord(stage="search", command="slm-ray search", options={"trials": 10, "space": "fine"})
OTHER = CONFIG.model_copy(update={"options": {"trials": 11}})
ROOT = Path(__file__).parents[2]


def test_a_new_run_has_its_config_and_environment_and_can_be_opened_again(tmp_path):
    folder = RunFolder.create(tmp_path / "runs" / "a", CONFIG)
    folder.close()
    again = RunFolder.open_existing(tmp_path / "runs" / "a")
    assert read_record(again.path, RunRecord) == CONFIG
    environment = again.file(ENVIRONMENT_FILE).read_text()
    assert '"python"' in environment
    assert str(Path.home()) not in environment
    again.close()


@pytest.mark.parametrize("before", [[], ["runs"], ["runs/other.txt"]])
def test_a_mistake_leaves_the_folders_that_were_there_before(before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in before:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    RunFolder.create(Path("runs/deep/a"), CONFIG).forget()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if "cache" not in path.parts)
    assert left == sorted({*before, *(["runs"] if before else [])})


def test_a_folder_in_use_is_refused_and_free_once_closed(tmp_path):
    folder = RunFolder.create(tmp_path / "a", CONFIG)
    with pytest.raises(UserError, match="in use by another process"):
        RunFolder.open_existing(tmp_path / "a")
    folder.close()
    folder.close()
    RunFolder.open_existing(tmp_path / "a").close()


def test_the_lock_of_a_killed_process_does_not_outlive_it(tmp_path):
    RunFolder.create(tmp_path / "a", CONFIG).close()
    code = (
        "import os, pathlib, sys; from slm_ray.runtime.runfolder import RunFolder;"
        "folder = RunFolder.open_existing(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="in use"):
            RunFolder.open_existing(tmp_path / "a")
        holder.kill()
        holder.wait()
        RunFolder.open_existing(tmp_path / "a").close()


@pytest.mark.parametrize(
    ("config", "what"),
    [(CONFIG, "already holds this same run"), (OTHER, "already holds a run with another config")],
)
def test_a_folder_that_holds_a_run_is_not_used_again(tmp_path, config, what):
    RunFolder.create(tmp_path / "a", CONFIG).close()
    with pytest.raises(UserError, match=f"{what}: continue it with --resume .*a, or choose another --out"):
        RunFolder.create(tmp_path / "a", config)
    assert read_record(tmp_path / "a", RunRecord) == CONFIG


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        RunFolder.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"creating the run folder .*: a part of the path is a file"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG)
    with pytest.raises(UserError, match="creating the run folder"):
        RunFolder.create(tmp_path / "file", CONFIG)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="permission denied: choose a folder you can write to"):
        RunFolder.create(tmp_path / "run", CONFIG)


def test_resuming_where_there_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="holds no run to resume"):
            RunFolder.open_existing(folder)


@pytest.mark.parametrize("content", ["[]", '{"trials":'])
def test_a_damaged_config_is_named(tmp_path, content):
    RunFolder.create(tmp_path / "a", CONFIG).close()
    (tmp_path / "a" / CONFIG_FILE).write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        RunFolder.open_existing(tmp_path / "a")
