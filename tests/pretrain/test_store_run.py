"""Training from a logit store, end to end: read by the trainer, refused if it is another's."""

import json
import shutil
from pathlib import Path

import pytest

from slm_ray.data.shards import TokenShards
from slm_ray.models.teachers import load_teacher
from slm_ray.pretrain.command import PRETRAIN
from slm_ray.runtime.commands import run_command
from tests.distill.store_cases import make_store
from tests.pretrain.test_command import arguments, refused
from tests.pretrain.tiny_pretrain import records
from tests.search.tiny_run import LENGTH, Tiny


@pytest.fixture(autouse=True)
def cache(tiny, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))


def _capture(tiny: Tiny, shards: Path, out: Path, **options: object) -> Path:
    teacher = load_teacher(str(tiny.teacher), tiny.cache / "teachers")
    return make_store(out, teacher, TokenShards.open(shards), **options).folder


@pytest.fixture(scope="module")
def store(tiny, shards, tmp_path_factory) -> Path:
    """The whole vocabulary, so that top-k is the full distribution."""
    k = len(json.loads((tiny.teacher / "tokenizer.json").read_text())["model"]["vocab"])
    return _capture(tiny, shards, tmp_path_factory.mktemp("stores") / "top-k", k=k)


@pytest.fixture(scope="module")
def sampled(tiny, shards, tmp_path_factory) -> Path:
    return _capture(tiny, shards, tmp_path_factory.mktemp("stores") / "sampled", kind="sampled", draws=2000)


def losses(tiny: Tiny, shards: Path, out: Path, *flags: str) -> list[float]:
    """The training losses of a run in this process."""
    assert run_command(PRETRAIN.main, arguments(tiny, out, "--shards", str(shards), *flags)) == 0
    return [record["loss"] for record in records(out / "teacher.random" / "steps.jsonl")]


def test_a_store_of_the_whole_vocabulary_trains_as_the_teacher_in_the_loop_does(tiny, store, shards, tmp_path):
    full = losses(tiny, shards, tmp_path / "full", "--start", "random")
    flags = ["--start", "random", "--distill", "top-k-tail", "--store", str(store)]
    stored = losses(tiny, shards, tmp_path / "run", *flags)
    assert stored == pytest.approx(full, rel=2e-3)  # the store rounds log-probabilities to fp16
    model = json.loads((tmp_path / "run" / "result.json").read_text())["models"][0]
    assert model["capture_flops"] == json.loads((store / "manifest.json").read_text())["flops"] > 0
    assert model["flops"]["teacher"] == 0


def test_draws_train_nearly_as_the_whole_distribution_does(tiny, sampled, shards, tmp_path):
    flags = ["--start", "random", "--loss", "soft_ce"]
    full = losses(tiny, shards, tmp_path / "full", *flags)
    drawn = losses(tiny, shards, tmp_path / "drawn", *flags, "--distill", "sampled", "--store", str(sampled))
    assert drawn == pytest.approx(full, rel=2e-2)


def test_a_store_of_a_part_of_the_shards_is_trained_on_alone(tiny, store, shards, tmp_path, capsys):
    part = _capture(tiny, shards, tmp_path / "part", k=4, num_sequences=5)
    losses(tiny, shards, tmp_path / "run", "--start", "random", "--distill", "top-k", "--store", str(part))
    assert f"{5 * LENGTH} training tokens" in capsys.readouterr().err


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
    given = ["--shards", str(shards), "--store", str(store), *flags]
    assert says in refused(capsys, arguments(tiny, tmp_path / "run", *given))


def test_a_store_of_other_tokens_is_refused(tiny, store, tmp_path, capsys):
    given = ["--store", str(store), "--distill", "top-k", "--sequence-length", "16", "--tokens", "256"]
    assert "its tokens digest is" in refused(capsys, arguments(tiny, tmp_path / "run", *given))


def test_a_store_cut_short_is_refused(tiny, store, shards, tmp_path, capsys):
    short = tmp_path / "short"
    shutil.copytree(store, short)
    part = max(short.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-100])
    given = ["--shards", str(shards), "--store", str(short), "--distill", "top-k"]
    assert part.name in refused(capsys, arguments(tiny, tmp_path / "run", *given))
