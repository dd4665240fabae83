"""The C++ module that DeepSpeed compiles on a CPU: once per machine, and whole, whatever is killed while it is made."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slm_ray.core.digest import digest_json
from slm_ray.core.errors import UserError
from slm_ray.core.files import cache_folder
from slm_ray.core.locks import held

_FOLDER = "TORCH_EXTENSIONS_DIR"
_LOCK_FILE = ".slm_ray.lock"
_TORCHS_LOCK = "lock"


def find_tools() -> None:
    """Make sure of what compiling takes, before DeepSpeed is imported.

    Raises:
        UserError: There is no C++ compiler, or no ninja.
    """
    if not (shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")):
        raise UserError(
            "DeepSpeed builds a small C++ module on a CPU and finds no compiler: install g++, or give --engine torch"
        )
    if not shutil.which("ninja"):
        # DeepSpeed's requirements bring one into the environment, whose programs need not be on the PATH.
        programs = Path(sys.executable).parent
        if not shutil.which("ninja", path=str(programs)):
            raise UserError("DeepSpeed needs ninja on a CPU: pip install ninja, or give --engine torch")
        os.environ["PATH"] = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])


def check_tools_here(device: str) -> None:
    """The same before anything is begun, where this machine is the one that trains.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: They are missing.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        find_tools()


def choose_folder() -> None:
    """Have what is compiled kept in the cache, apart for every machine: it fits the very processor it was made on."""
    os.environ.setdefault(_FOLDER, str(_own_folder()))


def compile_once(note: Callable[[str], None]) -> None:
    """Load DeepSpeed's module for a CPU, or compile it, which takes the better part of a minute; one process at a time.

    torch marks a folder that it compiles in by a file, for which every other process waits; one that was killed leaves
    the file, and all later ones would wait for ever. Here all wait for a lock that dies with its holder, and who has it
    may remove the file. DeepSpeed does not load a second time what a process has loaded.

    Args:
        note: Told what takes so long.

    Raises:
        UserError: The folder cannot be written, or the compiler fails.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return  # then DeepSpeed does without
    folder = Path(os.environ[_FOLDER])
    with held(folder / _LOCK_FILE):
        if not (folder / builder.name / f"{builder.name}.so").is_file():
            note("compiles DeepSpeed's C++ module, once per machine")
        if folder == _own_folder():  # in a folder that the user chose others may compile, who do not know our lock
            for left in folder.glob(f"*/{_TORCHS_LOCK}"):
                left.unlink(missing_ok=True)
        _load(builder, folder)


def _load(builder: Any, folder: Path) -> None:
    try:
        builder.load(verbose=False)
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().rpartition("\n")[2][:200]
        raise UserError(
            f"DeepSpeed's C++ module could not be compiled in {folder} ({reason}): see that g++ works and the disk has "
            "room, or give --engine torch"
        ) from error


def _own_folder() -> Path:
    machine = digest_json([platform.node(), _processor(), sys.version])[:16]
    return cache_folder() / "torch_extensions" / machine


def _processor() -> str:
    """What the processor can do: code that was compiled for one may stop another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
