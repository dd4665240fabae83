"""Makes folders that look like a pretraining run, without training anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

STARTS = {"student": (4.0, 2.6, 65e12), "random": (11.0, 4.5, 0.0), "first-n": (11.2, 3.9, 0.0)}
CONFIG: dict[str, Any] = {
    "student": "runs/half/winners/0", "distill": "full", "data": "python-docs", "tokens": "100k", "optimizer": "adamw",
    "learning_rate": 1e-3, "schedule": "cosine", "batch_size": 8, "sequence_length": 512,
    "command": "python -m slm_ray.pretrain --student runs/half/winners/0 --compare",
}  # fmt: skip


def evaluations(first: float, last: float, count: int = 11) -> list[dict[str, Any]]:
    found = []
    for index in range(count):
        tokens = 10_000 * index
        loss = last + (first - last) * math.exp(-index / 2)
        flops = {"own": 5e8 * tokens, "teacher": 3e8 * tokens, "capture": 0.0}
        found.append({
            "step": index, "tokens": tokens, "loss": loss, "stderr": 0.05, "bits_per_byte": loss / 2.7,
            "eval_tokens": 8192, "flops": flops, "seconds": 10.0 * index,
        })  # fmt: skip
    return found


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write_model(run: Path, start: str, *, done: bool = True, count: int = 11) -> Path:
    first, last, searched = STARTS[start]
    folder = run / f"winner-0.{start}"
    (folder / "model").mkdir(parents=True)
    described = {"start": start, "params": 67_238_208, "search_flops": searched, "flops_per_token": 1.6e8}
    (folder / "model.json").write_text(json.dumps(described))
    (folder / "evals.jsonl").write_text(lines(evaluations(first, last, count)))
    step = {"step": 1, "tokens": 4096, "loss": 3.0, "tokens_per_second": 1000.0, "memory_bytes": 2**30}
    (folder / "steps.jsonl").write_text(lines([step]))
    (folder / "model/config.json").write_text(json.dumps({"auto_map": {}} if start == "student" else {}))
    if done:
        result = {"model": f"{folder.name}/model", "capture_flops": 0.0, "mfu": None, "energy": {"joules": 7.2e6}}
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def training_run(folder: Path, *, finished: bool = True, config: dict[str, Any] | None = None) -> Path:
    """A comparison of three starts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2"}, "cpus": 2}))
    for start in STARTS:
        write_model(folder, start, done=finished)
    if finished:
        models = [{"name": f"winner-0.{start}"} for start in STARTS]
        (folder / "result.json").write_text(json.dumps({"command": "x", "models": models}))
    return folder
