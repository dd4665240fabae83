"""``--scratch``: what it refuses, what it plans, and whole runs of models from nothing."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm_ray.config.base import build_config
from slm_ray.config.errors import UserError
from slm_ray.models.families import config_architecture
from slm_ray.models.scratch import build_scratch, find_rung
from slm_ray.models.teachers import load_teacher
from slm_ray.pretrain.command import PRETRAIN
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.inputs import load_models
from slm_ray.pretrain.scratch import plan_scratch, with_kept_settings
from slm_ray.records.cost import num_params
from slm_ray.records.training import Origin, TrainedModel, TrainingData
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.progress import Console
from tests.pretrain.tiny_pretrain import flags_of, make_job, make_shards, records, run, steps_of, write_start
from tests.search.tiny_run import LENGTH, Tiny

STEPS, BATCH, TOKENIZER = 4, 4, 300
SIZES = "103k,205k"
ORIGIN = Origin(lineage={}, student=None, distilled_from=None, data=TrainingData(
    corpus="c", corpus_digest=None, training_tokens="t", different_tokens=1, held_out_tokens="h", tokenizer="k",
    logit_store=None,
))  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tiny, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))


def arguments(tiny: Tiny, out: Path | None = None, *more: str) -> list[str]:
    """A run of four steps of two sizes; what comes later on the command line wins."""
    given = {
        "scratch": SIZES, "tokenizer": f"train:{TOKENIZER}", "data": tiny.corpus, "sequence-length": LENGTH,
        "tokens": STEPS * BATCH * LENGTH, "batch-size": BATCH, "eval-tokens": 256, "engine": "torch",
        "precision": "fp32", "tracker": "none", "threads": 1, "launcher": "local",
    }  # fmt: skip
    return flags_of(given | ({"out": out} if out else {}), more)


def config_of(**changes) -> PretrainConfig:
    return build_config(PretrainConfig, {"scratch": "1M", "tokens": "2M", "sequence_length": 64, **changes})


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """Two models from nothing, trained to the end."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        assert run_command(PRETRAIN.main, arguments(tiny, out)) == 0
    return out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--student", "x"], "--student and --scratch are both given"),
        (["--compare"], "--compare takes existing weights"),
        (["--start", "random"], "--start takes existing weights"),
        (["--grow-from", "2"], "--grow-from takes existing weights"),
        (["--scratch", "tiny"], "--scratch 'tiny' must be parameters like 20M"),
        (["--scratch", ","], "--scratch '' must be parameters like 20M"),
        (["--scratch", "60k"], "--scratch 60K must lie between 100K and 20G parameters"),
        (["--scratch", "1M", "--tokenizer", "train:50000"], "too small for a vocabulary of 50,048"),
        (["--tokenizer", "train:many"], "must name a whole number of tokens, like train:8192"),
        (["--tokenizer", "train:10"], "a trained tokenizer must have 258 tokens"),
        (["--tokenizer", "nothing"], "is no folder, no hub id"),
        (["--positions", "rotory"], "did you mean 'rotary'?"),
        (["--distill", "full"], "--distill full needs a teacher: give --teacher"),
        (["--optimizer", "lion"], "--optimizer lion needs --learning-rate"),
        (["--tokens", "20"], "--tokens 20 is below one step of 128 tokens"),
    ],
)
def test_a_mistake_gets_one_sentence_before_anything_starts(flags, says, tiny, tmp_path, capsys):
    assert run_command(PRETRAIN.main, arguments(tiny, tmp_path / "run", *flags)) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


@pytest.mark.parametrize("flag", [["--positions", "alibi"], ["--tokenizer", "train:300"]])
def test_positions_and_tokenizers_are_not_a_students(flag, tiny, capsys):
    assert run_command(PRETRAIN.main, ["--student", str(tiny.teacher), *flag]) == 2
    assert f"{flag[0]} {flag[1]} belongs to --scratch" in capsys.readouterr().err


def test_batch_and_rate_are_the_ladders_unless_given():
    config = config_of(workers=3)
    rung = find_rung(1_000_000, 320)
    (model,) = plan_scratch(config, 320)
    assert model.batch_size == rung.batch_size(config.num_tokens, 64, 3) and model.batch_size % 3 == 0
    assert model.learning_rate == rung.learning_rate(model.batch_size * 64)
    own = model.config(config)
    assert (own.batch_size, own.optimizer.learning_rate) == (model.batch_size, model.learning_rate)
    assert own.num_tokens == own.total_steps * model.batch_size * 64
    (given,) = plan_scratch(config_of(batch_size=2, learning_rate=0.5), 320)
    assert (given.batch_size, given.learning_rate) == (2, 0.5)
    (smaller,) = plan_scratch(config_of(batch_size=2), 320)
    assert smaller.learning_rate == rung.learning_rate(2 * 64)


def test_a_resumed_run_keeps_its_batch_and_rate_with_other_workers(tmp_path):
    (before,) = plan_scratch(config_of(workers=5), 320)
    (tmp_path / "1M.scratch.seed0").mkdir()
    (tmp_path / "1M.scratch.seed0" / "model.json").write_text(TrainedModel(
        start="scratch", source="1M", params=1, flops_per_token=1.0, flops_exact=True, architecture=None,
        scratch=before.facts(), origin=ORIGIN,
    ).model_dump_json())
    config = config_of(workers=1)
    assert plan_scratch(config, 320)[0].batch_size != before.batch_size
    assert with_kept_settings(config, plan_scratch(config, 320), tmp_path) == (before,)
    config = config_of(workers=7)
    with pytest.raises(UserError, match="is not divisible by --workers 7"):
        with_kept_settings(config, plan_scratch(config, 320), tmp_path)


def test_what_is_not_given_depends_on_scratch_and_teacher():
    plain, new = build_config(PretrainConfig, {"student": "x"}), config_of()
    assert (plain.batch.batch_size, plain.optimizer.learning_rate, plain.kind) == (8, 1e-3, "full")
    assert (new.batch.batch_size, new.optimizer.learning_rate, new.kind) == (None, None, "none")
    assert config_of(teacher="t").kind == "full" and config_of(teacher="t", distill="none").kind == "none"


def test_a_dry_run_says_sizes_batches_and_rates(tiny, capsys):
    flags = ["--scratch", "1M", "--tokens", "2M", "--dry-run"]
    given = [text for text in arguments(tiny, None, *flags) if text not in ("--batch-size", str(BATCH))]
    assert run_command(PRETRAIN.main, given) == 0
    said = capsys.readouterr().out
    rung = find_rung(1_000_000, 320)
    assert f"1M: {rung.params:,} parameters ({rung.matrix_params:,} without embeddings)" in said
    assert said.count("the ladder's") == 2 and "FLOPs in all" in said
    assert run_command(PRETRAIN.main, [*given, "--learning-rate", "0.002"]) == 0
    assert "learning rate 0.002 (as given)" in capsys.readouterr().out


def test_models_from_nothing_are_trained_and_described(finished):
    result = json.loads((finished / "result.json").read_text())
    assert [model["name"] for model in result["models"]] == ["103K.scratch", "205K.scratch"]
    tokenizer = AutoTokenizer.from_pretrained(finished / "tokenizer")
    assert len(tokenizer) == TOKENIZER
    for model in result["models"]:
        assert model["status"] == "done" and model["tokens"] == STEPS * BATCH * LENGTH and model["search_flops"] == 0
        described = json.loads((finished / model["name"] / "model.json").read_text())
        assert described["start"] == "scratch" and described["scratch"]["batch_size"] == BATCH
        trained = AutoModelForCausalLM.from_pretrained(finished / model["model"])
        assert trained.config.vocab_size == 320 and trained.config.eos_token_id == tokenizer.eos_token_id
        assert num_params(config_architecture(trained.config)) == described["params"] == model["params"]
        rates = [record["lr"] for record in records(finished / model["name"] / "steps.jsonl")]
        assert max(rates) == pytest.approx(described["scratch"]["learning_rate"])
    assert "sizes_batches_and_rates" in json.loads((finished / "inputs.json").read_text())


def test_a_run_is_resumed_where_its_sizes_are_the_same(finished, tiny, capsys):
    result = (finished / "result.json").read_text()
    (finished / "result.json").unlink()
    assert run_command(PRETRAIN.main, ["--resume", str(finished)]) == 0
    assert json.loads((finished / "result.json").read_text())["models"] == json.loads(result)["models"]
    inputs = json.loads((finished / "inputs.json").read_text())
    (finished / "result.json").unlink()
    (finished / "inputs.json").write_text(json.dumps(inputs | {"sizes_batches_and_rates": "other"}))
    assert run_command(PRETRAIN.main, ["--resume", str(finished)]) == 2
    assert "its sizes batches and rates was other" in capsys.readouterr().err
    (finished / "inputs.json").write_text(json.dumps(inputs))
    (finished / "result.json").write_text(result)


def test_a_teacher_gives_its_tokenizer_and_its_help(tiny, tmp_path):
    teacher = load_teacher(str(tiny.teacher))
    config = config_of(scratch="205k", teacher=str(tiny.teacher), positions="none", sequence_length=16)
    _, (student,) = load_models(config, tmp_path, Console())
    assert student.tokenizer.get_vocab() == teacher.tokenizer().get_vocab()
    rows = teacher.architecture().structure.vocab_size
    assert student.label == "205K-none" and student.scratch.architecture.structure.vocab_size == rows
    model = build_scratch(student.scratch.architecture, "none", 0, student.tokenizer)
    start = write_start(tmp_path / "start", model)
    shards = make_shards(tmp_path / "data", vocabulary=rows)
    records = run(make_job(start, shards, 3, distill="full", teacher=str(teacher.folder)))
    assert len(steps_of(records)) == 3 and all(divergence > 0 for divergence in steps_of(records, "kd"))
