"""Rows of the comparison: made once, never again, and shown in a table with intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.peers import rows, starts
from benchmarks.peers.__main__ import main
from benchmarks.peers.options import PEERS, PeerOptions, parse
from benchmarks.peers.study import Study
from benchmarks.peers.table import render
from slm_ray.config.errors import UserError
from slm_ray.records.files import read_json, write_json
from tests.search.tiny_run import LENGTH, Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def _options(tiny: Tiny, out: Path, **changes: object) -> PeerOptions:
    given = {
        "out": out, "tokens": 128, "teacher": str(tiny.teacher), "data": str(tiny.corpus), "sequence_length": LENGTH,
        "batch_size": 2, "eval_tokens": 128, "other_tokens": 64, "decide_tokens": 128, "calibration_samples": 8,
        "calibration_length": LENGTH, "rates": (1e-3, 1e-2), "pilot_tokens": 64, "other": str(tiny.corpus),
        "precision": "fp32", "share": 0.6,
    }  # fmt: skip
    return PeerOptions(**{**given, **changes})


def test_every_rate_is_trained_on_all_tokens_where_tries_are_as_long(tiny: Tiny, tmp_path: Path) -> None:
    study = Study(_options(tiny, tmp_path / "study", pilot_tokens=128, rates=(1e-3, 1e-2, 1e-4)))
    rows.make_row(study, "random")
    folder = rows.row_folder(study, "random")
    tried = [read_json(folder / f"after-128-{rate:g}.json") for rate in (1e-3, 1e-2, 1e-4)]
    assert read_json(folder / "after-128.json") == min(tried, key=lambda record: record["loss"])
    assert len({record["loss"] for record in tried}) == 3 and "calibration" not in tried[0]["texts"]
    assert not list(folder.glob("pilot-*")) and not list(folder.glob("training-*"))


def test_rows_are_made_measured_and_trained_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(_options(tiny, tmp_path / "study"))
    rows.measure_teacher(study)
    for name in ("shortgpt", "minitron"):
        rows.make_row(study, name)
    for name in ("random", "first-n"):
        rows.make_row(Study(_options(tiny, tmp_path / "study", tokens=0)), name)
    folder = rows.row_folder(study, "minitron")
    losses = [read_json(folder / f"pilot-128-{rate:g}.json")["loss"] for rate in (1e-3, 1e-2)]
    after, before = read_json(folder / "after-128.json"), read_json(folder / "before.json")
    assert after["rate"] == (1e-3, 1e-2)[losses.index(min(losses))] and after["tokens"] == 128
    assert after["texts"] != before["texts"] and set(after["texts"]) == {str(tiny.corpus), "corpus"}
    assert not list(folder.glob("training-*")) and not list(folder.glob("pilot-*/"))
    assert len(list((study.out / "teacher-states").iterdir())) == 2  # two steps, for both rows and their pilots
    made = {path: path.stat().st_mtime_ns for path in study.out.rglob("*.json")}
    monkeypatch.setattr(starts, "MAKERS", {})
    rows.make_row(study, "minitron")
    assert made == {path: path.stat().st_mtime_ns for path in study.out.rglob("*.json")}

    # As if ours were that of whole layers, so that differences can be shown.
    (study.out / "rows" / "shortgpt").rename(study.out / "rows" / "ours")
    shown = render(study.out, 128)
    assert all(len(line.split("|")) == len(head.split("|")) for head, *body in _tables(shown) for line in body)
    row = next(line for line in shown.splitlines() if line.startswith("| Minitron-like"))
    assert "[" in row and "×" in row and "other trainings" not in shown
    write_json(folder / "after-256.json", after | {"tokens": 256, "rate": 0.5})
    write_json(folder / "after-128-0.7.json", {"rate": 0.7, "tokens": 128, "loss": None, "error": "it ran away"})
    *_, others = _tables(render(study.out, 128))
    assert others[0].startswith("| other trainings") and others[-1].startswith("| Minitron-like | 256 | 0.5 | ")
    assert "[" in others[-1], "held against ours after the table's own number of tokens"
    assert str(tiny.corpus.parent) not in json.dumps(study.options.fixed()["other"])


def _tables(text: str) -> list[list[str]]:
    blocks = [[line for line in block.splitlines() if line.startswith("|")] for block in text.split("\n\n")]
    return [block for block in blocks if block]


def test_other_options_are_refused_for_the_same_folder(tiny: Tiny, tmp_path: Path) -> None:
    Study(_options(tiny, tmp_path / "study"))
    Study(_options(tiny, tmp_path / "study", tokens=256, peers=("random",)))
    with pytest.raises(UserError, match="begun with seed 0, not 1"):
        Study(_options(tiny, tmp_path / "study", seed=1))


def test_a_model_over_the_budget_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(_options(tiny, tmp_path / "study"))
    big = Study(_options(tiny, tmp_path / "big", share=0.9))
    monkeypatch.setitem(starts.MAKERS, "ours", lambda _study: starts.MAKERS["first-n"](big))
    with pytest.raises(UserError, match="more than the"):
        starts.make_start(study, "ours")


def test_a_failed_row_is_said_in_the_table(tmp_path: Path) -> None:
    write_json(tmp_path / "options.json", {"teacher": "it", "share": 0.5})
    (tmp_path / "rows" / "minitron").mkdir(parents=True)
    write_json(tmp_path / "rows" / "minitron" / "failed.json", {"error": "no shape fits"})
    assert "Minitron-like: no shape fits" in render(tmp_path, 100_000)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--peers", "minitrom"], "minitron"),
        (["--rates", "1e-3,fast"], "--rates"),
        (["--share", "1.5"], "--share"),
        (["--tokens", "100"], "below one step"),
        (["--eval-tokens", "100"], "--eval-tokens"),
        (["--other", "no-such-file"], "--other"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_counts_and_names_are_read(tmp_path: Path) -> None:
    given = ["--out", str(tmp_path), "--tokens", "500k", "--peers", "ours, random"]
    options, _ = parse(given)
    assert options.tokens == 500_000 and options.peers == ("ours", "random") and options.run is None
    assert parse(["--out", str(tmp_path)])[0].peers == PEERS
