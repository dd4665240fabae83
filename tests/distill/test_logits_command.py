"""``slm-ray logits``: a store from text, the dry run, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slm_ray.distill.command import main
from slm_ray.distill.store import LogitStore
from slm_ray.runtime.commands import run_command
from tests.search.tiny_run import Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


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


def test_a_store_of_the_tokens_that_were_planned(
    one_ray: None, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens, length = "320", 32
    more = ["--tokens", tokens]
    assert run(tiny, arguments(tiny, tmp_path / "top", *more, "--dry-run")) == 0
    planned = capfd.readouterr().out
    assert run(tiny, arguments(tiny, tmp_path / "top", *more)) == 0
    told, said = capfd.readouterr()
    assert "top-k, 4.0 ids" in told and "FLOPs in" in told
    assert "capturing" in said and "Running Dataset" not in said + told
    top = LogitStore.open(tmp_path / "top")
    assert top.num_sequences == -(-int(tokens) // length)
    assert f"tokens            {top.manifest.num_tokens:,}, {top.num_sequences:,} sequences" in planned
    assert f"{top.manifest.num_tokens:,} tokens, {top.num_sequences:,} sequences of 32" in told
    shards = told.strip().splitlines()[-1].removeprefix("tokens: ")
    prepared = ["--teacher", str(tiny.teacher), "--precision", "fp32", "--workers", "1", "--shards", shards]
    assert run(tiny, [*prepared, *more, "--kind", "sampled", "--draws", "9", "--out", str(tmp_path / "drawn")]) == 0
    drawn = LogitStore.open(tmp_path / "drawn")
    assert top.request.tokens_digest == drawn.request.tokens_digest and top.num_sequences == drawn.num_sequences
    some = np.array([number for number in range(top.request.of_sequences) if number in top._captured][:1])
    assert top.signal(some).ids.shape == (31, 4)
    assert drawn.signal(some).ids.shape[1] <= 9


def test_a_dry_run_prints_the_costs_and_makes_nothing(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, per_token in (("top-k", "about 18"), ("sampled", "about 8")):
        assert run(tiny, arguments(tiny, tmp_path / "store", "--kind", kind, "--dry-run")) == 0
        told = capsys.readouterr().out
        for words in ("2,016, 63 sequences", "FLOPs a token", f"bytes a token     {per_token}", "disk  ", "time   "):
            assert words in told
    assert not list(tmp_path.glob("store*"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--k", "100000"], "--k must be from 1 to the teacher's 320 rows, got 100,000"),
        (["--kind", "top-p"], "--kind: 'top-p' is not one of them: did you mean 'top-k'? (valid: sampled, top-k)"),
        (["--kind", "sampled", "--draws", "0"], "--draws: must be at least 1, got '0'"),
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


def test_what_needs_no_file_is_checked_before_the_teacher_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slm_ray.models.teachers.load_teacher", None)
    (tmp_path / "mine").write_text("text")
    for more in ([], ["--dry-run"]):
        assert run_command(main, ["--out", str(tmp_path), *more]) == 2
        assert "is not empty and holds no logit store: choose another --out" in capsys.readouterr().err
    assert run_command(main, []) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert run_command(main, ["--out", str(tmp_path / "store"), "--shards", str(tmp_path / "none")]) == 2
    assert "none/manifest.json does not exist" in capsys.readouterr().err
