"""A training that was interrupted goes on, step for step, as if it had not been."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from slm_ray.data import TRAIN, load_corpus, prepare_tokens
from slm_ray.pretrain.command import PRETRAIN
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.progress import Console
from tests.distill.store_cases import VOCABULARY, make_teacher
from tests.models.tiny import tiny_model
from tests.pretrain.tiny_pretrain import (
    environment,
    evals_of,
    make_job,
    make_shards,
    records,
    run,
    run_apart,
    scale_of,
    steps_of,
    with_scale,
    write_start,
)
from tests.search.processes import descendants, wait_until
from tests.search.tiny_run import make_tiny

DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
# Name to model and changes of the job.
CASES = {
    "plain": ("llama", {}),
    "dropout": ("gpt2", {}),
    "joined": ("qwen3", {"documents": "joined", "clip": 0.0, "micro_batch": 2}),
    "lion": ("llama", {"optimizer": "lion", "learning_rate": 1e-3}),
    "fp16": ("llama", {"precision": "fp16"}),
    "full": ("llama", {"distill": "full", "kd_schedule": "linear"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher"), seed=3)


@pytest.fixture(scope="module")
def job(data, teacher, tmp_path_factory):
    """Makes a job of a case; where a teacher is in the loop, of its vocabulary."""
    folder = tmp_path_factory.mktemp("jobs")
    words = make_shards(tmp_path_factory.mktemp("words"), VOCABULARY)

    def make(name, place, steps=6, **more):
        model, changes = CASES[name]
        full = changes.get("distill") == "full"
        sizes = {**(DROPOUT if name == "dropout" else {}), **({"vocab_size": VOCABULARY} if full else {})}
        if not (folder / place).exists():
            write_start(folder / place, tiny_model(model, seed=1, **sizes))
            if name == "fp16":
                with_scale(folder / place, 1024.0)
        if full:
            more = {"teacher": str(teacher.folder), **more}
        return make_job(folder / place, words if full else data, steps, **{**changes, **more})

    return make


@pytest.mark.parametrize("name", [*CASES, "lamb", "muon"])
def test_plain_torch_goes_on_exactly(name, job):
    more = {"optimizer": name} if name not in CASES else {}
    case = name if name in CASES else "plain"
    whole = run(job(case, f"{name}-whole", **more))
    first = run(job(case, f"{name}-halves", 3, **more))
    second = run(job(case, f"{name}-halves", **more))
    assert len(steps_of(whole)) == 6, whole
    for figure in ("loss", "ce", "kd", "lr", "grad_norm", "tokens"):
        assert steps_of(first, figure) + steps_of(second, figure) == steps_of(whole, figure)
    assert evals_of(first) + evals_of(second) == evals_of(whole)
    assert second[0].step == 3


def test_the_loss_scale_is_kept(job):
    first = job("fp16", "fp16-scale", 3)
    run(first)
    assert scale_of(Path(first.storage).parent) == 1024.0


@pytest.fixture(scope="module")
def continued(job, tmp_path_factory):
    """Every stage: whole, and in two halves by trainers of their own; and halves by different engines and stages."""
    scratch = tmp_path_factory.mktemp("run")
    jobs = []
    for stage in range(4):
        engine = {"engine": "deepspeed", "zero": stage}
        for name in ("plain", "dropout", "full", "fp16"):
            place = f"{name}-{stage}"
            jobs += [job(name, f"{place}-whole", **engine), job(name, place, 3, **engine), job(name, place, **engine)]
    for first, second in CHANGES:
        place = f"plain-from-{first}-to-{second}"
        jobs += [job("plain", place, 3, **engine_of(first)), job("plain", place, **engine_of(second))]
    events = run_apart(jobs, scratch)
    return {(one.name, one.total_steps): found for one, found in zip(jobs, events, strict=True)}


CHANGES = [("torch", 0), ("torch", 1), ("torch", 3), (0, 2), (1, 3), (2, "torch"), (3, 1), (3, "torch")]


def engine_of(name):
    return {"engine": "torch"} if name == "torch" else {"engine": "deepspeed", "zero": name}


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("name", ["plain", "dropout", "full", "fp16"])
def test_deepspeed_goes_on_exactly(name, stage, continued):
    place = f"{name}-{stage}"
    whole, halves = continued[f"{place}-whole", 6], continued[place, 3] + continued[place, 6]
    assert len(steps_of(whole)) == 6, whole
    for figure in ("loss", "kd", "grad_norm"):
        assert steps_of(halves, figure) == steps_of(whole, figure)
    assert evals_of(halves) == evals_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("first, second", CHANGES)
def test_another_engine_or_stage_goes_on(first, second, continued, job):
    place = f"plain-from-{first}-to-{second}"
    halves = continued[place, 3] + continued[place, 6]
    assert steps_of(halves) == pytest.approx(steps_of(continued["plain-0-whole", 6]), rel=1e-5)
    assert evals_of(halves) == pytest.approx(evals_of(continued["plain-0-whole", 6]), rel=1e-5)


# The real command, killed.

STEPS = 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shards(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    tokenizer = AutoTokenizer.from_pretrained(tiny.teacher)
    packed = prepare_tokens(
        load_corpus(str(tiny.corpus), "text", Console()), tokenizer, TRAIN, num_tokens=1600, sequence_length=16,
        cache=folder.parent / "cache", console=Console(),
    )  # fmt: skip
    packed.copy_to(folder)
    return folder


def command(tiny, shards, out, *more):
    given = {
        "student": tiny.teacher, "data": tiny.corpus, "shards": shards, "tokens": STEPS * 4 * 16,
        "sequence-length": 16, "batch-size": 4, "eval-tokens": 128, "eval-every": 4 * 64, "checkpoint-every": 4 * 64,
        "distill": "full", "teacher": tiny.teacher, "start": "random", "precision": "fp32", "device": "cpu",
        "threads": 1, "tracker": "none", "out": out,
    }  # fmt: skip
    return [*(text for name, value in given.items() for text in (f"--{name}", str(value))), *more]


LOCAL = ("--launcher", "local", "--engine", "torch")


def start(tiny, arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "slm_ray.pretrain", *arguments], env={**environment(), "SLM_RAY_CACHE": str(tiny.cache)},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def steps_on_record(run_folder):
    return records(run_folder / "teacher.random" / "steps.jsonl")


def outcome(run_folder):
    """What two equal runs agree on."""
    told = ("step", "tokens", "loss", "kd", "lr")
    steps = [[record[name] for name in told] for record in steps_on_record(run_folder)]
    evals = [[record[name] for name in ("step", "loss", "stderr")] for record in evals_on_record(run_folder)]
    return {"steps": steps, "evals": evals}


def evals_on_record(run_folder):
    return records(run_folder / "teacher.random" / "evals.jsonl")


def run_here(tiny, *arguments):
    """Run the command in this process to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_RAY_CACHE", str(tiny.cache))
        assert run_command(PRETRAIN.main, [*map(str, arguments)]) == 0


@pytest.fixture(scope="module")
def uninterrupted(tiny, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run_here(tiny, *command(tiny, shards, out, *LOCAL))
    return out


@pytest.mark.slow
def test_the_driver_is_killed_and_the_run_resumed(tiny, shards, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(tiny, command(tiny, shards, out, *LOCAL))
    wait_until(lambda: len(steps_on_record(out)) >= 10 or process.poll() is not None, 300, "ten steps")
    process.kill()
    process.communicate()
    before = len(steps_on_record(out))
    assert 10 <= before < STEPS
    with (out / "teacher.random" / "steps.jsonl").open("a") as file:
        file.write('{"step": 11, "tok')  # as a kill in the middle of a write leaves it
    run_here(tiny, "--resume", out)
    assert [record["step"] for record in steps_on_record(out)] == list(range(1, STEPS + 1))
    assert outcome(out) == outcome(uninterrupted)
    result, whole = (json.loads((path / "result.json").read_text()) for path in (out, uninterrupted))
    assert result["models"][0]["evals"][-1]["loss"] == whole["models"][0]["evals"][-1]["loss"]
    weights = "teacher.random/model/model.safetensors"
    assert (out / weights).read_bytes() == (uninterrupted / weights).read_bytes()


def training_workers(pid):
    return [child for child, name in descendants(pid).items() if "RayTrainWorker" in name]


@pytest.mark.slow
def test_a_worker_and_then_the_driver_of_ray_are_killed(tiny, shards, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(tiny, command(tiny, shards, out))
    wait_until(lambda: len(steps_on_record(out)) >= 5 or process.poll() is not None, 400, "five steps")
    victims = training_workers(process.pid)
    assert victims, process.communicate()
    os.kill(victims[0], signal.SIGKILL)
    wait_until(
        lambda: set(training_workers(process.pid)) - set(victims) or process.poll() is not None, 400, "a new worker"
    )
    wait_until(lambda: len(steps_on_record(out)) >= 14 or process.poll() is not None, 400, "more steps")
    ended = process.poll()  # 0: it was done by then
    process.kill()
    printed = process.communicate()
    assert ended in (None, 0) and len(steps_on_record(out)) >= 14, printed
    run_here(tiny, "--resume", out)
    assert [record["step"] for record in steps_on_record(out)] == list(range(1, STEPS + 1))
    found, whole = outcome(out), outcome(uninterrupted)
    for kind in found:
        for ours, theirs in zip(found[kind], whole[kind], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_ctrl_c_ends_a_training_on_ray_in_one_sentence(tiny, shards, tmp_path):
    out = tmp_path / "run"
    words = command(tiny, shards, out)
    words[words.index("--tokens") + 1] = "10M"
    process = start(tiny, words, start_new_session=True)
    wait_until(lambda: len(steps_on_record(out)) >= 5 or process.poll() is not None, 400, "five steps")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    errors = process.communicate(timeout=400)[1]
    assert process.returncode == 130, errors[-2000:]
    assert errors.splitlines()[-1].startswith("interrupted: what was finished is kept") and "Traceback" not in errors
