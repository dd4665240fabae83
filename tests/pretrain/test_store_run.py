"""Training from a logit store, end to end: captured by its command, read by the trainer, refused if it is another's."""

import json
import shutil
from pathlib import Path

import pytest

from slm_ray.distill import command as logits
from slm_ray.pretrain.command import PRETRAIN
from slm_ray.runtime.commands import run_command
from tests.pretrain.test_command import arguments, refused
from tests.pretrain.tiny_pretrain import records
from tests.search.tiny_run import LENGTH, Tiny


@pytest.fixture(autouse=True)
def cache(tiny, one_ray, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))


def _capture(tiny: Tiny, out: Path, *more: str) -> Path:
    given = ["--teacher", str(tiny.teacher), "--precision", "fp32", "--out", str(out), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        assert run_command(logits.main, given) == 0
    return out


@pytest.fixture(scope="module")
def store(tiny, shards, one_ray, tmp_path_factory) -> Path:
    """The whole vocabulary, so that top-k is the full distribution."""
    k = len(json.loads((tiny.teacher / "tokenizer.json").read_text())["model"]["vocab"])
    return _capture(tiny, tmp_path_factory.mktemp("stores") / "top-k", "--shards", str(shards), "--k", str(k))


@pytest.fixture(scope="module")
def sampled(tiny, shards, one_ray, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "sampled"
    return _capture(tiny, out, "--kind", "sampled", "--draws", "4000", "--shards", str(shards))


def losses(tiny: Tiny, shards: Path, out: Path, *flags: str) -> list[float]:
    """The training losses of a run in this process."""
    assert run_command(PRETRAIN.main, arguments(tiny, out, "--launcher", "local", "--shards", str(shards), *flags)) == 0
    return [record["loss"] for record in records(out / "teacher.random" / "steps.jsonl")]


def test_a_store_of_the_whole_vocabulary_trains_as_the_teacher_in_the_loop_does(tiny, store, shards, tmp_path):
    full = losses(tiny, shards, tmp_path / "full", "--start", "random")
    for kind in ("top-k", "top-k-tail"):
        stored = losses(tiny, shards, tmp_path / kind, "--start", "random", "--distill", kind, "--store", str(store))
        assert stored == pytest.approx(full, rel=2e-3)  # the store rounds log-probabilities to fp16


def test_draws_train_nearly_as_the_whole_distribution_does(tiny, sampled, shards, tmp_path):
    flags = ["--start", "random", "--loss", "soft_ce"]
    full = losses(tiny, shards, tmp_path / "full", *flags)
    drawn = losses(tiny, shards, tmp_path / "drawn", *flags, "--distill", "sampled", "--store", str(sampled))
    assert drawn == pytest.approx(full, rel=2e-2)


def test_a_store_of_a_part_of_the_shards_is_trained_on_alone(tiny, store, shards, tmp_path, capsys):
    part = _capture(tiny, tmp_path / "part", "--k", "4", "--shards", str(shards), "--tokens", str(5 * LENGTH))
    losses(tiny, shards, tmp_path / "run", "--start", "random", "--distill", "top-k", "--store", str(part))
    assert f"{5 * LENGTH} training tokens" in capsys.readouterr().err


def test_the_capture_is_counted(tiny, store, shards, tmp_path):
    out = tmp_path / "run"
    losses(tiny, shards, out, "--start", "random", "--distill", "top-k", "--store", str(store))
    model = json.loads((out / "result.json").read_text())["models"][0]
    assert model["capture_flops"] == json.loads((store / "manifest.json").read_text())["flops"] > 0
    assert model["flops"]["teacher"] == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--distill", "top-k-tail", "--temperature", "2"], "its temperature is 1.0, the run's is 2.0"),
        (["--documents", "joined", "--distill", "top-k"], "its documents is separate, the run's is joined"),
        (["--distill", "top-k", "--loss", "reverse_kl"], "reverse_kl"),
        (["--distill", "sampled"], "gives top-k-tail or top-k, not sampled"),
    ],
)
def test_a_store_that_does_not_match_is_refused(flags, says, tiny, store, shards, tmp_path, capsys):
    given = ["--launcher", "local", "--shards", str(shards), "--store", str(store), *flags]
    assert says in refused(capsys, arguments(tiny, tmp_path / "run", *given))


def test_a_store_of_other_tokens_is_refused(tiny, store, tmp_path, capsys):
    given = ["--store", str(store), "--distill", "top-k", "--sequence-length", "16", "--tokens", "256"]
    assert "its tokens digest is" in refused(capsys, arguments(tiny, tmp_path / "run", *given))


def test_a_store_cut_short_is_refused(tiny, store, shards, tmp_path, capsys):
    short = tmp_path / "short"
    shutil.copytree(store, short)
    part = max(short.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-100])
    given = ["--launcher", "local", "--shards", str(shards), "--store", str(short), "--distill", "top-k"]
    assert part.name in refused(capsys, arguments(tiny, tmp_path / "run", *given))
