"""The command: what it refuses, in one sentence each, and whole runs: of several models, and on Ray."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm_ray.pretrain.command import PRETRAIN
from slm_ray.runtime.commands import run_command
from tests.models.tiny import tiny_model
from tests.pretrain.tiny_pretrain import flags_of, records
from tests.search.tiny_run import LENGTH, Tiny, make_tokenizer, sentences

STEPS, BATCH = 6, 4


@pytest.fixture(scope="module")
def tiny(tiny, tmp_path_factory) -> Tiny:
    return dataclasses.replace(tiny, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def cache(tiny, monkeypatch):
    monkeypatch.setenv("SLM_RAY_CACHE", str(tiny.cache))


def arguments(tiny: Tiny, out: Path | None = None, *more: str) -> list[str]:
    """A run of six steps; what comes later on the command line wins."""
    given = {
        "student": tiny.teacher, "teacher": tiny.teacher, "data": tiny.corpus, "tokens": STEPS * BATCH * LENGTH,
        "sequence-length": LENGTH, "batch-size": BATCH, "eval-tokens": 256, "engine": "torch", "precision": "fp32",
        "tracker": "none", "threads": 1, "launcher": "local",
    }  # fmt: skip
    return flags_of(given | ({"out": out} if out else {}), more)


def without_teacher(given: list[str]) -> list[str]:
    at = given.index("--teacher")
    return given[:at] + given[at + 2 :]


def run_to_its_end(tiny: Tiny, out: Path, *flags: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        assert run_command(PRETRAIN.main, arguments(tiny, out, *flags)) == 0
    return out


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """A comparison of three models, trained in this process."""
    return run_to_its_end(tiny, tmp_path_factory.mktemp("finished") / "run", "--compare")


def refused(capsys, given: list[str]) -> str:
    """The one sentence that a command ends with."""
    assert run_command(PRETRAIN.main, given) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error: ") :]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tokens", "100"], "--tokens 100 is below one step of 128 tokens"),
        (["--batch-size", "3", "--workers", "2"], "--batch-size 3 is not divisible by --workers 2: give 4"),
        (["--micro-batch", "3"], "--micro-batch 3 must divide a worker's 4 sequences"),
        (["--micro-batch", "many"], "must be a whole number or auto"),
        (["--start", "rondom"], "did you mean 'random'?"),
        (["--seed", "one"], "must be a whole number"),
        (["--distill", "top-k"], "--distill top-k needs --store FOLDER"),
        (["--store", "x"], "--store is given, but --distill full reads none"),
        (["--loss", "forward-kl"], "did you mean 'forward_kl'?"),
        (["--optimizer", "muon", "--zero", "2", "--engine", "deepspeed"], "needs whole matrices, which ZeRO 2 shards"),
        (["--zero", "2"], "leave out --engine torch"),
        (["--zero", "4", "--engine", "deepspeed"], "--zero: must be at most 3"),
        (["--offload", "--engine", "deepspeed"], "--offload needs ZeRO"),
        (["--kd-weight", "1.5"], "--kd-weight: must be at most 1"),
        (["--learning-rate", "0"], "--learning-rate: must be above 0"),
        (["--reference-loss", "3"], "give --grow-from as well"),
        (["--grow-from", "2", "--compare"], "leave out --compare and --start"),
        (["--sequence-length", "128", "--batch-size", "1"], "teacher's 64 positions: give 64 or less"),
        (["--student", "nowhere/model"], "could not be loaded as a causal language model"),
        (["--data", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--tokns", "5"], "did you mean '--tokens'?"),
        (["--shards", "nowhere"], "nowhere"),
        (["--storage", "s3://"], "--storage s3:// names no place"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_sentence_and_leaves_nothing(flags, says, tiny, tmp_path, capsys):
    out = tmp_path / "run"
    assert says in refused(capsys, arguments(tiny, out, *flags))
    assert not (out / "result.json").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--device", "cuda"], "the cluster has no GPU"),
        (["--workers", "64", "--batch-size", "64", "--tokens", "4096"], "need 64 CPUs, and the cluster has"),
    ],
)
def test_what_a_cluster_lacks_is_said_before_anything_is_prepared(flags, says, tiny, one_ray, tmp_path, capsys):
    assert says in refused(capsys, arguments(tiny, tmp_path / "run", "--launcher", "ray", *flags))


def test_another_tokenizer_than_the_teachers_is_refused(tiny, tmp_path, capsys):
    student = tmp_path / "student"
    shutil.copytree(tiny.teacher, student)
    make_tokenizer(sentences(50, seed=9)[:400]).save_pretrained(student)
    says = refused(capsys, arguments(tiny, tmp_path / "run", "--student", str(student)))
    assert "is not that of the teacher" in says


def test_a_student_without_a_lineage_needs_a_teacher(tiny, tmp_path, capsys):
    assert "--distill full needs a teacher" in refused(capsys, without_teacher(arguments(tiny, tmp_path / "run")))


def test_all_models_of_a_comparison_are_trained_and_compared(finished):
    result = json.loads((finished / "result.json").read_text())
    names = [model["name"] for model in result["models"]]
    assert names == ["teacher.student", "teacher.random", "teacher.first-n"]
    for model in result["models"]:
        assert model["status"] == "done"
        assert model["tokens"] == STEPS * BATCH * LENGTH
        assert model["begin"]["runs"] == {
            "engine": "torch", "optimizer": "AdamW", "precision": "fp32", "weights": "float32", "zero": 0,
        }  # fmt: skip
        assert model["evals"][-1]["loss"] < model["evals"][0]["loss"] or model["start"] != "random"
        steps = [record["step"] for record in records(finished / model["name"] / "steps.jsonl")]
        assert steps == [1, 2, 3, 4, 5, 6]
    table = (finished / "table.txt").read_text()
    assert "teacher.random's final loss of" in table
    assert "before its first step" in table


def test_the_models_load_as_plain_folders(finished):
    model = AutoModelForCausalLM.from_pretrained(finished / "teacher.random" / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "teacher.random" / "model")
    ids = tokenizer("The search keeps", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 3
    assert model.dtype == torch.float32


def test_a_checkpoint_is_exported(finished, tmp_path, capsys):
    checkpoint = max((finished / "teacher.student" / "checkpoints").glob("step-*"))
    assert run_command(PRETRAIN.main, ["--export", str(checkpoint), "--out", str(tmp_path / "model")]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.vocab_size > 0
    assert not list((tmp_path / "model").glob("optimizer*"))
    assert "has no checkpoint of step 50: there are" in refused(
        capsys, ["--export", str(checkpoint.with_name("step-00000050")), "--out", str(tmp_path / "other")]
    )


def test_a_finished_run_is_only_shown(finished, capsys):
    assert run_command(PRETRAIN.main, ["--resume", str(finished)]) == 0
    assert "teacher.first-n" in capsys.readouterr().out


def test_what_decides_the_result_cannot_change_at_a_resume(finished, capsys):
    assert "--learning-rate cannot be changed" in refused(capsys, ["--resume", str(finished), "--learning-rate", "1"])


def test_a_model_that_fails_does_not_stop_the_others(tiny, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(tiny.teacher, broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        model.model.norm.weight.fill_(1e38)
    model.save_pretrained(broken)
    out = tmp_path / "run"
    says = refused(capsys, arguments(tiny, out, "--student", f"{tiny.teacher},{broken}"))
    assert "1 of 2 models failed (broken.student): broken.student: the loss is " in says
    assert "the last good checkpoint is step-00000000" in says and says.strip().endswith("; the other is finished")
    assert "--resume" not in says
    assert json.loads((out / "teacher.student" / "result.json").read_text())["status"] == "done"


def test_a_model_of_another_family_trains_without_a_teacher(tiny, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny.teacher)
    folder = tmp_path / "gpt2"
    tiny_model("gpt2", vocab_size=len(tokenizer)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    flags = ["--student", str(folder), "--distill", "none"]
    assert run_command(PRETRAIN.main, without_teacher(arguments(tiny, tmp_path / "run", *flags))) == 0
    trained = tmp_path / "run" / "gpt2.student"
    size, own = ((path / "model.safetensors").stat().st_size for path in (trained / "model", folder))
    assert size <= 1.02 * own, "a bf16 student stays bf16, and as large as it was"
    checkpoint = max((trained / "checkpoints").glob("step-*")) / "model.safetensors"
    assert {value.dtype for value in load_file(checkpoint).values()} == {torch.float32}
    assert "KiB bf16" in (tmp_path / "run" / "table.txt").read_text()


def test_a_dry_run_spends_nothing(tiny, tmp_path, capsys):
    assert run_command(PRETRAIN.main, arguments(tiny, tmp_path / "run", "--compare", "--dry-run")) == 0
    assert "3 models, 768 tokens each: 6 steps of 4 x 32" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [64, -1])
def test_embeddings_may_have_other_rows_than_the_teachers_but_not_fewer_than_token_ids(
    more, tiny, tmp_path, capsys
):
    tokenizer = AutoTokenizer.from_pretrained(tiny.teacher)
    tiny_model("llama", vocab_size=len(tokenizer) + more).save_pretrained(tmp_path / "s")
    tokenizer.save_pretrained(tmp_path / "s")
    given = arguments(tiny, tmp_path / "run", "--student", str(tmp_path / "s"))
    if more > 0:
        assert run_command(PRETRAIN.main, given) == 0
        assert all(record["kd"] > 0 for record in records(tmp_path / "run" / "s.student" / "steps.jsonl"))
    else:
        assert f"embedding rows for {len(tokenizer)} token ids" in refused(capsys, given)
        assert not (tmp_path / "run").exists()
