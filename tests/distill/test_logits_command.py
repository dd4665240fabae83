"""``python -m slm_ray.logits``: a store from text, resuming after a kill, the dry run, and bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slm_ray.data.shards import TokenShards
from slm_ray.distill.capture_settings import CaptureSettings
from slm_ray.distill.command import main
from slm_ray.distill.store import LogitStore
from slm_ray.distill.store_format import part_sequences
from slm_ray.models.teachers import load_teacher
from slm_ray.runtime.commands import run_command
from tests.distill.store_cases import make_store
from tests.search.processes import kill_below, wait_until
from tests.search.tiny_run import Tiny, environment, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def long(tiny: Tiny) -> Path:
    """Text for some ten parts."""
    path = tiny.corpus.with_name("long")
    path.mkdir()
    text = tiny.corpus.read_text()
    for number in range(12):
        (path / f"{number}.txt").write_text(f"Chapter {number}.\n{text}")
    return path


def arguments(tiny: Tiny, out: Path, *more: str) -> list[str]:
    given = {
        "teacher": tiny.teacher, "data": tiny.corpus, "tokens": "2000", "sequence-length": 32, "k": 4, "draws": 9,
        "workers": 1, "precision": "fp32", "out": out,
    }  # fmt: skip
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + list(more)


def run(tiny: Tiny, argv: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        return run_command(main, argv)


def test_a_store_from_text(one_ray: None, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tiny, arguments(tiny, tmp_path / "top")) == 0
    told, said = capfd.readouterr()
    assert "top-k, 4.0 words" in told and "FLOPs in" in told
    assert "capturing" in said and "Running Dataset" not in said + told
    shards = told.strip().splitlines()[-1].removeprefix("tokens: ")
    prepared = ["--teacher", str(tiny.teacher), "--precision", "fp32", "--workers", "1", "--shards", shards]
    assert run(tiny, [*prepared, "--kind", "sampled", "--draws", "9", "--out", str(tmp_path / "drawn")]) == 0
    assert run(tiny, arguments(tiny, tmp_path / "top")) == 0  # there already
    top, drawn = LogitStore.open(tmp_path / "top"), LogitStore.open(tmp_path / "drawn")
    assert top.manifest["request"]["tokens_digest"] == drawn.manifest["request"]["tokens_digest"]
    assert top.num_sequences * 32 >= 2000
    assert top.signal(np.array([0])).ids.shape == (31, 4)
    assert drawn.signal(np.array([0])).ids.shape[1] <= 9


def test_a_dry_run_says_what_it_costs_and_makes_nothing(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, per_token in (("top-k", "about 18"), ("sampled", "about 8")):
        assert run(tiny, arguments(tiny, tmp_path / "store", "--kind", kind, "--dry-run")) == 0
        told = capsys.readouterr().out
        for words in ("about 2,000", "FLOPs a token", f"bytes a token     {per_token}", "disk  ", "time   "):
            assert words in told
    assert not list(tmp_path.glob("store*"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--k", "100000"], "--k must be from 1 to the teacher's 320 words, got 100,000"),
        (["--kind", "top-p"], "--kind: 'top-p' is not one of them: did you mean 'top-k'? (valid: sampled, top-k)"),
        (["--kind", "sampled", "--draws", "0"], "--draws: must be at least 1, got 0"),
        (["--temperature", "0"], "--temperature: must be above 0"),
        (["--tokens", "0"], "--tokens must be a count like 300k or 20M, or all, got '0'"),
        (["--shards", "somewhere"], "--data and --shards are both given"),
        (["--draw", "3"], "unknown argument '--draw': did you mean '--draws'?"),
        (["--sequence-length", "65"], "--sequence-length 65 is over the teacher's 64 positions"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert run(tiny, arguments(tiny, tmp_path / "store", *more)) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("store*"))


def test_a_place_that_is_taken_is_refused_before_anything_is_done(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("text")
    for more in ([], ["--dry-run"]):
        assert run(tiny, arguments(tiny, tmp_path, *more)) == 2
        assert "is not empty and holds no logit store: choose another --out" in capsys.readouterr().err
    assert run(tiny, ["--teacher", str(tiny.teacher)]) == 2
    assert "--out is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_capture_goes_on_where_it_was(tiny: Tiny, long: Path, tmp_path: Path) -> None:
    """kill -9 of the command after its first part; a worker of the second start is killed too."""
    argv = [sys.executable, "-m", "slm_ray.logits"]
    argv += arguments(tiny, tmp_path / "store", "--data", str(long), "--tokens", "all", "--kind", "sampled")
    partial = tmp_path / "store.partial"
    options = {"env": environment(tiny), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(argv, start_new_session=True, **options)  # type: ignore[call-overload,no-any-return]

    first = start()
    wait_until(lambda: list(partial.glob("part-*.json")), 400, "the first part")
    first.kill()
    first.communicate()
    done = [path.name for path in partial.glob("part-*.json")]
    kept = {name: (partial / name).with_suffix(".safetensors").stat().st_mtime_ns for name in done}
    second = start()
    killed: list[int] = []

    def strike() -> bool:
        killed.extend(kill_below(second.pid, "ray::Map"))  # Ray names a process by the task it is at
        return bool(killed) or second.poll() is not None

    wait_until(strike, 400, "a worker to kill")
    assert killed
    _, said = second.communicate(timeout=400)
    assert second.returncode == 0, said
    assert " parts are there already" in said
    store = LogitStore.open(tmp_path / "store")
    for name, written in kept.items():
        assert (store.folder / name).with_suffix(".safetensors").stat().st_mtime_ns == written
    uninterrupted = store_without_ray(tiny, store, tmp_path / "whole")
    assert [part["sha256"] for part in uninterrupted.manifest["parts"]] == [
        part["sha256"] for part in store.manifest["parts"]
    ]


def store_without_ray(tiny: Tiny, like: LogitStore, folder: Path) -> LogitStore:
    """The same store, captured part after part in this process."""
    request = like.manifest["request"]
    folders = (tiny.cache / "shards").glob("train-shards-*")
    shards = next(one for one in map(TokenShards.open, folders) if one.digest == request["tokens_digest"])
    settings = CaptureSettings(**{name: request[name] for name in ("kind", "draws", "seed", "documents", "precision")})
    count = part_sequences(shards.num_sequences, shards.sequence_length)
    return make_store(folder, load_teacher(str(tiny.teacher), tiny.cache), shards, settings, count)
