"""Makes folders that look like a pretraining run, without training anything."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slm_ray.records.base import Record, write_record
from slm_ray.records.run import RunRecord
from slm_ray.records.training import (
    ModelOutcome,
    ModelResult,
    TrainedModel,
    TrainEvaluation,
    TrainInputs,
    TrainResult,
    TrainStatus,
    TrainStep,
)
from tests.report.made_search import ENVIRONMENT

STARTS = {"student": (4.0, 2.6, 65e12), "random": (11.0, 4.5, 0.0), "first-n": (11.2, 3.9, 0.0)}
COMMAND = "slm-ray pretrain --student runs/half/winners/0 --compare"
OPTIONS: dict[str, Any] = {
    "student": "runs/half/winners/0", "distill": "full", "data": "python-docs", "tokens": "100k", "optimizer": "adamw",
    "learning_rate": 1e-3, "schedule": "cosine", "batch_size": 8, "sequence_length": 512,
}  # fmt: skip
DATA = {
    "corpus": "python-docs", "corpus_digest": "c1", "training_tokens": "t1", "different_tokens": 90_000,
    "held_out_tokens": "h1", "tokenizer": "k1", "logit_store": None,
}  # fmt: skip


def evaluations(first: float, last: float, count: int = 11) -> list[dict[str, Any]]:
    found = []
    for index in range(count):
        tokens, loss = 10_000 * index, last + (first - last) * math.exp(-index / 2)
        found.append({
            "version": 2, "step": index, "tokens": tokens, "loss": loss, "stderr": 0.05, "bits_per_byte": loss / 2.7,
            "eval_tokens": 8192, "flops": {"own": 5e8 * tokens, "teacher": 3e8 * tokens}, "seconds": 10.0 * index,
        })  # fmt: skip
    return found


def write_lines(folder: Path, cls: type[Record], records: Sequence[dict[str, Any]]) -> None:
    lines = [cls.model_validate(record).model_dump_json() for record in records]
    (folder / cls.FILE).write_text("".join(f"{line}\n" for line in lines))


def outcome(run: Path, name: str, start: str) -> dict[str, Any]:
    return {
        "name": name, "status": "done", "start": start, "params": 67_238_208, "search_flops": STARTS[start][2],
        "capture_flops": 0.0, "flops_exact": True, "checkpoints": "c", "begin": None, "evals": (),
        "model": f"{name}/model", "dtype": "bfloat16", "bytes": 134_476_416,
        "energy": {"joules": 7.2e6, "source": "meter", "from_step": 0},
    }  # fmt: skip


def write_model(run: Path, start: str, *, done: bool = True, count: int = 11, name: str = "") -> Path:
    first, last, searched = STARTS[start]
    folder = run / (name or f"winner-0.{start}")
    (folder / "model").mkdir(parents=True)
    write_record(folder, TrainedModel.model_validate({
        "start": start, "source": "runs/half/winners/0", "params": 67_238_208, "search_flops": searched,
        "flops_per_token": 1.6e8, "flops_exact": True, "architecture": None,
        "origin": {"lineage": {}, "student": "winners/0", "distilled_from": None, "data": DATA},
    }))  # fmt: skip
    write_lines(folder, TrainEvaluation, evaluations(first, last, count))
    write_lines(folder, TrainStep, [{
        "step": 1, "tokens": 4096, "loss": 3.0, "ce": 3.0, "kd": None, "lr": 1e-3, "kd_weight": 0.0, "grad_norm": 1.0,
        "seconds": 4.0, "tokens_per_second": 1000.0, "flops": {}, "cpu_percent": 190.0, "gpu_percent": None,
        "memory_bytes": 2**30, "gpu_memory_bytes": None,
    }])  # fmt: skip
    (folder / "model/config.json").write_text(json.dumps({"auto_map": {}} if start == "student" else {}))
    if done:
        write_record(folder, ModelResult.model_validate(outcome(run, folder.name, start)))
    return folder


def fail_model(folder: Path, message: str) -> None:
    """Make a model of a run one that has failed before its first evaluation."""
    for cls in (TrainEvaluation, TrainStep):
        (folder / cls.FILE).unlink()
    write_record(folder, TrainStatus.model_validate({"failure": {"message": message}}))


def training_run(
    folder: Path, *, finished: bool = True, options: dict[str, Any] | None = None, held_out: str = "h1"
) -> Path:
    """A comparison of three starts."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, RunRecord(stage="pretrain", command=COMMAND, options=options or OPTIONS))
    write_record(folder, ENVIRONMENT)
    write_record(folder, TrainInputs(
        teacher="t", tokenizer="k", training_tokens="t1", held_out_tokens=held_out, logit_store=None))  # fmt: skip
    for start in STARTS:
        write_model(folder, start, done=finished)
    if finished:
        models = [ModelOutcome.model_validate(outcome(folder, f"winner-0.{start}", start)) for start in STARTS]
        write_record(folder, TrainResult(command=COMMAND, models=tuple(models)))
    return folder
