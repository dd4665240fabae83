"""Tiny training jobs without a driver: in this process, or a list of them in a process (or torchrun's) of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from slm_ray.config.errors import UserError
from slm_ray.data.shards import write_shards
from slm_ray.pretrain.build import Place
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.engine import TrainingState
from slm_ray.pretrain.first_checkpoint import write_first_checkpoint
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.loop import train
from slm_ray.pretrain.process_group import local_group
from slm_ray.pretrain.state_files import TRAINER_FILE, WEIGHTS_FILE, read_state, write_state
from tests.models.tiny import VOCAB, tiny_model

LENGTH = 16
SEQUENCES = 20  # two and a half steps of eight: step 3 ends in the middle of an epoch
HERE = Place(0, 1, torch.device("cpu"))
OPTIONS: dict[str, Any] = {
    "loss": "forward_kl", "temperature": 1.0, "kd_weight": 0.7, "kd_schedule": "constant", "optimizer": "adamw",
    "learning_rate": 1e-2, "schedule": "cosine", "warmup": 0.1, "floor": 0.1, "weight_decay": 0.1, "beta1": 0.9,
    "beta2": 0.95, "clip": 1.0, "precision": "fp32", "engine": "torch", "zero": 0, "offload": False,
    "activation_checkpointing": False, "keep_last": 2, "spike": 3.0, "eval_steps": 3, "checkpoint_steps": 3,
    "architecture_digest": "none",
}  # fmt: skip
Records = list[tuple[str, dict[str, Any]]]


def make_shards(folder: Path, vocabulary: int = VOCAB, seed: int = 0) -> Path:
    """Random tokens in documents of 2 to 12 tokens: ``shards`` and ``held_out``."""
    rng = np.random.default_rng(seed)
    for name, count in (("shards", SEQUENCES), ("held_out", 7)):
        rows = rng.integers(0, vocabulary, (count, LENGTH), dtype=np.int32)
        starts = np.append(0, rng.integers(2, 13, rows.size).cumsum())
        write_shards(folder / name, rows, starts[starts < rows.size], vocab_size=vocabulary, num_bytes=4 * rows.size)
    return folder


def make_job(folder: Path, data: Path, steps: int = 6, **changes: Any) -> TrainJob:
    """A job whose checkpoints are in ``folder``; changes are fields of the job, or else options."""
    fields = {field.name for field in dataclasses.fields(TrainJob)} - {"options"}
    options = {**OPTIONS, **{name: value for name, value in changes.items() if name not in fields}}
    values: dict[str, Any] = {
        "name": folder.name, "storage": str(folder / "checkpoints"), "seed": 0, "total_steps": steps,
        "schedule_steps": 6, "batch_size": 8, "micro_batch": 4, "shards": str(data / "shards"),
        "sequences": None, "documents": "separate", "held_out": str(data / "held_out"), "teacher": None, "store": None,
        "distill": "none", "flops": {"own": 1.0, "teacher": 0.0, "capture": 0.0},
    }  # fmt: skip
    return TrainJob(**{**values, **{name: changes[name] for name in changes if name in fields}}, options=options)


def write_start(folder: Path, model: Any = None) -> Path:
    """The first checkpoint of a model (a tiny Llama if none is given)."""
    folder.mkdir(parents=True, exist_ok=True)
    model = tiny_model("llama", seed=1) if model is None else model
    write_first_checkpoint(model, None, LENGTH, str(folder / "checkpoints"), folder.name)
    return folder


def with_scale(folder: Path, scale: float) -> Path:
    """Put a loss scale into a first checkpoint."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    first = checkpoints.latest()
    assert first is not None
    with checkpoints.open(first) as source:
        _, trainer = read_state(source)
        state = TrainingState(load_file(source / WEIGHTS_FILE), scale=scale)
        checkpoints.save(0, lambda target: write_state(target, source, state, trainer), {})
    return folder


def scale_of(folder: Path) -> float | None:
    """The loss scale in the newest checkpoint."""
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    scale: float | None = json.loads((newest / TRAINER_FILE).read_text())["scale"]
    return scale


def run(job: TrainJob, place: Place = HERE) -> Records:
    """Train in this process; everything that was said, and ``failure`` where it ended in one."""
    said: Records = []
    try:
        train(job, place, lambda kind, record: said.append((kind, record)))
    except UserError as error:
        said.append(("failure", {"message": str(error)}))
    return said


def steps_of(records: Records, key: str = "loss") -> list[float]:
    """A figure of every step."""
    return [record[key] for kind, record in records if kind == "step"]


def evals_of(records: Records) -> list[float]:
    """The losses of all evaluations."""
    return [record["loss"] for kind, record in records if kind == "eval"]


def failure_of(records: Records) -> str:
    """The sentence that a training ended with."""
    (message,) = [record["message"] for kind, record in records if kind == "failure"]
    return str(message)


def environment() -> dict[str, str]:
    """Of a process of its own."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def run_apart(jobs: list[TrainJob], scratch: Path, workers: int = 0) -> list[Records]:
    """Train jobs one after the other in a process of their own, or in ``workers`` of torchrun's."""
    given, taken = scratch / "jobs.json", scratch / "records.json"
    scratch.mkdir(parents=True, exist_ok=True)
    taken.unlink(missing_ok=True)
    given.write_text(json.dumps([job.to_json() for job in jobs]))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"] if workers else []
    command = [sys.executable, *torchrun, "-m", "tests.pretrain.tiny_pretrain", str(given), str(taken)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=570)
    assert taken.exists(), done.stdout[-2000:] + done.stderr[-6000:]
    return [[(kind, record) for kind, record in records] for records in json.loads(taken.read_text())]


def main(given: str, taken: str) -> None:
    """What a process of its own does."""
    from slm_ray.pretrain.zero import prepare_deepspeed

    torch.set_num_threads(1)
    jobs = [TrainJob(**job) for job in json.loads(Path(given).read_text())]
    if any(job.option("engine") == "deepspeed" for job in jobs):
        prepare_deepspeed("cpu")
    with local_group("cpu") as place:
        records = [run(job, place) for job in jobs]
        if place.rank == 0:
            Path(taken).write_text(json.dumps(records))


if __name__ == "__main__":
    main(*sys.argv[1:])
