"""The command, killed or interrupted: it goes on, step for step, as if it had not been."""

import json
import os
import signal
import subprocess
import sys

import pytest

from slm_ray.pretrain.command import PRETRAIN
from slm_ray.runtime.commands import run_command
from tests.pretrain.tiny_pretrain import environment, flags_of, records
from tests.search.processes import descendants, wait_until
from tests.search.tiny_run import LENGTH

STEPS, BATCH = 24, 2
STEP_TOKENS = BATCH * LENGTH


def command(tiny, shards, out, *more):
    given = {
        "student": tiny.teacher, "data": tiny.corpus, "shards": shards, "tokens": STEPS * STEP_TOKENS,
        "sequence-length": LENGTH, "batch-size": BATCH, "eval-tokens": 128, "eval-every": 4 * STEP_TOKENS,
        "checkpoint-every": 4 * STEP_TOKENS,
        "distill": "full", "teacher": tiny.teacher, "start": "random", "precision": "fp32", "device": "cpu",
        "threads": 1, "tracker": "none", "out": out,
    }  # fmt: skip
    return flags_of(given, more)


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
def test_a_worker_and_then_the_driver_of_ray_are_killed(tiny, shards, uninterrupted, one_ray, tmp_path):
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
    process = start(tiny, command(tiny, shards, out, "--tokens", "10M"), start_new_session=True)
    wait_until(lambda: len(steps_on_record(out)) >= 5 or process.poll() is not None, 400, "five steps")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    errors = process.communicate(timeout=400)[1]
    assert process.returncode == 130, errors[-2000:]
    assert errors.splitlines()[-1].startswith("interrupted: what was finished is kept") and "Traceback" not in errors
