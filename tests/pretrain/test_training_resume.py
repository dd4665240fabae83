"""The command, killed or interrupted: it goes on, step for step, as if it had not been."""

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

STEPS, BATCH = 48, 2
STEP_TOKENS = BATCH * LENGTH
LOCAL = ("--launcher", "local")


def command(tiny, shards, out, *more):
    given = {
        "student": tiny.teacher, "data": tiny.corpus, "shards": shards, "tokens": STEPS * STEP_TOKENS,
        "sequence-length": LENGTH, "batch-size": BATCH, "eval-tokens": 128, "eval-every": 4 * STEP_TOKENS,
        "checkpoint-every": 4 * STEP_TOKENS, "engine": "torch",
        "distill": "full", "teacher": tiny.teacher, "start": "random", "precision": "fp32", "device": "cpu",
        "threads": 1, "tracker": "none", "out": out,
    }  # fmt: skip
    return flags_of(given, more)


def start(tiny, arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "slm_ray.pretrain", *arguments], env={**environment(), "SLM_RAY_CACHE": str(tiny.cache)},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait_for_steps(process, run_folder, count):
    wait_until(lambda: len(steps_of(run_folder)) >= count or process.poll() is not None, 400, f"{count} steps")


def steps_of(run_folder):
    return records(run_folder / "teacher.random" / "steps.jsonl")


def outcome(run_folder):
    """What two equal runs agree on."""
    told = ("step", "tokens", "loss", "kd", "lr")
    evals = records(run_folder / "teacher.random" / "evals.jsonl")
    return [
        *([record[name] for name in told] for record in steps_of(run_folder)),
        *([record[name] for name in ("step", "loss", "stderr")] for record in evals),
    ]


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
def test_a_killed_run_is_resumed_bit_for_bit(tiny, shards, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(tiny, command(tiny, shards, out, *LOCAL))
    wait_for_steps(process, out, 10)
    process.kill()
    process.communicate()
    assert 10 <= len(steps_of(out)) < STEPS
    with (out / "teacher.random" / "steps.jsonl").open("a") as file:
        file.write('{"step": 11, "tok')  # as a kill in the middle of a write leaves it
    run_here(tiny, "--resume", out)
    assert outcome(out) == outcome(uninterrupted)
    weights = "teacher.random/model/model.safetensors"
    assert (out / weights).read_bytes() == (uninterrupted / weights).read_bytes()


def training_workers(pid):
    return {child for child, name in descendants(pid).items() if "RayTrainWorker" in name}


@pytest.mark.slow
def test_on_ray_a_killed_worker_is_replaced_and_ctrl_c_is_one_sentence(tiny, shards, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(tiny, command(tiny, shards, out))
    wait_for_steps(process, out, 5)
    victims = training_workers(process.pid)
    assert victims, process.communicate()
    os.kill(min(victims), signal.SIGKILL)
    wait_until(lambda: training_workers(process.pid) - victims or process.poll() is not None, 400, "a new worker")
    wait_for_steps(process, out, 10)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    errors = process.communicate(timeout=400)[1]
    if process.returncode:  # 0: it was done by then
        assert process.returncode == 130, errors[-2000:]
        assert "Traceback" not in errors
        assert errors.splitlines()[-1].startswith("interrupted: what was finished is kept")
    run_here(tiny, "--resume", out, *LOCAL)
    for ours, theirs in zip(outcome(out), outcome(uninterrupted), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
