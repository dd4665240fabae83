"""Tiny training jobs without a driver: in this process, or a list of them in a process (or torchrun's) of their own."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from slm_ray.config.base import build_config
from slm_ray.data.shards import write_shards
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.engine import Place
from slm_ray.pretrain.job import Event, TrainJob
from slm_ray.pretrain.launch import prepare_process
from slm_ray.pretrain.process_group import local_group
from slm_ray.pretrain.state import WEIGHTS_FILE, TrainerState, TrainingState, read_state, write_first_checkpoint
from slm_ray.pretrain.state import write_state as write_files
from slm_ray.pretrain.trainer import train
from slm_ray.records.base import read_record
from slm_ray.records.training import SpentFlops, TrainEvaluation, TrainFailure, TrainStep
from tests.models.tiny import VOCAB, tiny_model

LENGTH = 16
SEQUENCES = 20  # two and a half steps of eight: step 3 ends in the middle of an epoch
HERE = Place(0, 1, torch.device("cpu"))
STEP_TOKENS = 8 * LENGTH
OPTIONS: dict[str, Any] = {
    "student": "tiny", "tokens": 6 * STEP_TOKENS, "sequence_length": LENGTH, "batch_size": 8, "micro_batch": 4,
    "distill": "none", "learning_rate": 1e-2, "precision": "fp32", "engine": "torch",
    "eval_every": 3 * STEP_TOKENS, "checkpoint_every": 3 * STEP_TOKENS,
}  # fmt: skip
JOB_FIELDS = {"teacher", "flops", "seed", "store"}
Events = list[Event]


def make_shards(folder: Path, vocabulary: int = VOCAB, seed: int = 0) -> Path:
    """Random tokens in documents of 2 to 12 tokens: ``shards`` and ``held_out``."""
    rng = np.random.default_rng(seed)
    for name, count in (("shards", SEQUENCES), ("held_out", 7)):
        rows = rng.integers(0, vocabulary, (count, LENGTH), dtype=np.int32)
        starts = np.append(0, rng.integers(2, 13, rows.size).cumsum())
        write_shards(folder / name, rows, starts[starts < rows.size], vocab_size=vocabulary, num_bytes=4 * rows.size)
    return folder


def make_job(folder: Path, data: Path, steps: int = 6, **changes: Any) -> TrainJob:
    """A job whose checkpoints are in ``folder``; changes are fields of the job, or else options of pretraining."""
    options = {name: value for name, value in changes.items() if name not in JOB_FIELDS}
    every = {name for name in ("eval_every", "checkpoint_every") if name in changes}
    options |= {name: changes[name] * STEP_TOKENS for name in every}
    if "store" in changes:
        options["store"] = str(changes["store"])
    values: dict[str, Any] = {"seed": 0, "teacher": None, "store": None, "flops": SpentFlops(own=1.0)}
    values |= {name: changes[name] for name in changes if name in JOB_FIELDS}
    return TrainJob(
        name=folder.name, storage=str(folder / "checkpoints"), total_steps=steps, schedule_steps=6,
        config=build_config(PretrainConfig, OPTIONS | options), shards=str(data / "shards"),
        held_out=str(data / "held_out"), architecture="none", **values,
    )  # fmt: skip


def write_start(folder: Path, model: Any = None) -> Path:
    """The first checkpoint of a model (a tiny Llama if none is given)."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model("llama", seed=1) if model is None else model
    write_first_checkpoint(model, None, str(folder / "checkpoints"))
    return folder


def with_scale(folder: Path, scale: float) -> Path:
    """Put a loss scale into a first checkpoint."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    first = checkpoints.latest()
    assert first is not None
    with checkpoints.open(first) as source:
        _, trainer = read_state(source)
        state = TrainingState(load_file(source / WEIGHTS_FILE), scale=scale)
        checkpoints.save(0, lambda target: write_files(target, source, state, trainer), {})
    return folder


def scale_of(folder: Path) -> float | None:
    """The loss scale in the newest checkpoint."""
    return read_record(sorted((folder / "checkpoints").glob("step-*"))[-1], TrainerState).scale


def run(job: TrainJob, place: Place = HERE) -> Events:
    """Train in this process; everything that was reported, and the failure where it ended in one."""
    said: Events = []
    failure = train(job, place, said.append)
    return [*said, failure] if failure else said


def steps_of(events: Events, figure: str = "loss") -> list[Any]:
    """A figure of every step."""
    return [getattr(event, figure) for event in events if isinstance(event, TrainStep)]


def evals_of(events: Events) -> list[float | None]:
    """The losses of all evaluations."""
    return [event.loss for event in events if isinstance(event, TrainEvaluation)]


def failure_of(events: Events) -> TrainFailure:
    """What a training ended with."""
    (failure,) = [event for event in events if isinstance(event, TrainFailure)]
    return failure


def flags_of(given: dict[str, Any], more: Sequence[str]) -> list[str]:
    """Flags with their values; those in ``more`` take the place of given ones."""
    kept = {name: value for name, value in given.items() if f"--{name}" not in more}
    return [*(text for name, value in kept.items() for text in (f"--{name}", str(value))), *more]


def records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a records file as they are there; none where it does not exist yet."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def environment() -> dict[str, str]:
    """Of a process of its own."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def run_apart(jobs: list[TrainJob], scratch: Path, workers: int = 0) -> list[Events]:
    """Train jobs one after the other in a process of their own, or in ``workers`` of torchrun's."""
    given, taken = scratch / "jobs.json", scratch / "events.pickle"
    scratch.mkdir(parents=True, exist_ok=True)
    taken.unlink(missing_ok=True)
    given.write_text(json.dumps([job.to_json() for job in jobs]))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"] if workers else []
    command = [sys.executable, *torchrun, "-m", "tests.pretrain.tiny_pretrain", str(given), str(taken)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=570)
    assert taken.exists(), done.stdout[-2000:] + done.stderr[-6000:]
    events: list[Events] = pickle.loads(taken.read_bytes())
    return events


def main(given: str, taken: str) -> None:
    """The work of a process of its own."""
    jobs = [TrainJob.model_validate(job) for job in json.loads(Path(given).read_text())]
    for job in sorted(jobs, key=lambda one: one.config.engine.engine):
        prepare_process(job, "cpu", 1)
        break
    with local_group("cpu") as place:
        events = [run(job, place) for job in jobs]
        if place.rank == 0:
            Path(taken).write_bytes(pickle.dumps(events))


if __name__ == "__main__":
    main(*sys.argv[1:])
