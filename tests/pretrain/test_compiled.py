"""What DeepSpeed compiles: the tools for it, and a folder in which a compilation was killed."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.core.errors import UserError
from slm_ray.pretrain import compiled


def program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


class TestTools:
    @pytest.fixture
    def programs(self, tmp_path, monkeypatch):
        """The folder on the PATH, and the one of the environment's programs; both empty."""
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path / "path"))
        monkeypatch.setattr(sys, "executable", str(program(tmp_path / "bin", "python")))
        (tmp_path / "path").mkdir()
        return tmp_path / "path", tmp_path / "bin"

    def test_a_compiler_is_asked_for(self, programs):
        with pytest.raises(UserError, match=r"finds no compiler: install g\+\+, or give --engine torch"):
            compiled.find_tools()

    def test_ninja_is_taken_from_an_environment_that_is_not_activated(self, programs):
        path, own = programs
        program(path, "g++")
        program(own, "ninja")
        compiled.find_tools()
        assert os.environ["PATH"].split(os.pathsep) == [str(own), str(path)]

    def test_nothing_changes_where_it_is_on_the_path(self, programs):
        path, _ = programs
        program(path, "c++")
        program(path, "ninja")
        compiled.find_tools()
        assert os.environ["PATH"] == str(path)

    def test_without_ninja(self, programs):
        path, _ = programs
        program(path, "g++")
        with pytest.raises(UserError, match=r"needs ninja on a CPU: pip install ninja, or give --engine torch"):
            compiled.find_tools()


class Builder:
    """DeepSpeed's builder, which compiles nothing and notes what it finds."""

    NAME, name = "DS_BUILD_FAKE", "fake"

    def __init__(self, folder: Path, failure: Exception | None = None) -> None:
        self.folder, self.failure = folder, failure
        self.locked: list[bool] = []

    def load(self, verbose: bool) -> None:
        self.locked.append((self.folder / "fake/lock").exists())
        with (self.folder / ".slm_ray.lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if self.failure:
            raise self.failure
        (self.folder / "fake").mkdir(exist_ok=True)
        (self.folder / "fake/fake.so").touch()


class TestFolder:
    @pytest.fixture
    def compile_with(self, monkeypatch):
        import deepspeed
        import deepspeed.accelerator

        monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
        compiled.choose_folder()
        folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
        monkeypatch.setitem(deepspeed.ops.__compatible_ops__, Builder.NAME, True)
        notes: list[str] = []

        def compile_with(failure: Exception | None = None, folder: Path = folder) -> tuple[Builder, list[str]]:
            builder = Builder(folder, failure)
            accelerator = type("Accelerator", (), {"create_op_builder": lambda self, name: builder})
            monkeypatch.setattr(deepspeed.accelerator, "get_accelerator", accelerator)
            compiled.compile_once(notes.append)
            return builder, notes

        compile_with.folder = folder
        return compile_with

    def test_it_is_the_machines_own(self, compile_with, tmp_path, monkeypatch):
        assert compile_with.folder.parent == tmp_path / "cache/torch_extensions"
        monkeypatch.setattr(compiled, "_processor", lambda: "flags: another")
        assert compiled._own_folder() != compile_with.folder

    def test_a_compilation_is_announced_once(self, compile_with):
        compile_with()
        _, notes = compile_with()
        assert notes == ["compiles DeepSpeed's C++ module, once per machine"]

    def test_a_killed_compilation_is_begun_anew(self, compile_with):
        """torch waits for ever for the one that its file tells of."""
        (compile_with.folder / "fake").mkdir(parents=True)
        (compile_with.folder / "fake/lock").touch()
        builder, _ = compile_with()
        assert builder.locked == [False]

    def test_a_folder_of_the_users_is_left_as_it_is(self, compile_with, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "mine"))
        (tmp_path / "mine/fake").mkdir(parents=True)
        (tmp_path / "mine/fake/lock").touch()
        builder, _ = compile_with(folder=tmp_path / "mine")
        assert builder.locked == [True]

    def test_one_at_a_time_and_a_killed_one_lets_go(self, compile_with):
        """The lock is the kernel's: who holds it and is killed holds it no more."""
        compile_with()
        hold = (
            "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX);"
            "print(flush=True); sys.stdin.read()"
        )
        words = [sys.executable, "-c", hold, str(compile_with.folder / ".slm_ray.lock")]
        holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout is not None and holder.stdout.readline()
        holder.kill()
        holder.wait()
        builder, _ = compile_with()
        assert len(builder.locked) == 1

    @pytest.mark.parametrize(
        "failure", [RuntimeError("Error building\nNo space left on device"), ImportError("x.so: bad")]
    )
    def test_a_failure_is_one_sentence(self, compile_with, failure):
        reason = str(failure).splitlines()[-1]
        with pytest.raises(UserError, match=rf"could not be compiled in .* \({reason}\): see that g\+\+ works"):
            compile_with(failure)

    def test_a_folder_that_cannot_be_written(self, compile_with):
        compile_with.folder.parent.parent.mkdir(parents=True, exist_ok=True)
        compile_with.folder.parent.write_text("a file")
        with pytest.raises(UserError, match=r"writing .*torch_extensions"):
            compile_with()
