"""Makes folders that look like a report on proxies and like a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slm_ray.records.base import SCHEMA_VERSION, write_record
from slm_ray.records.proxies import ProxyReport, TrainedCandidate
from slm_ray.records.run import RunRecord
from tests.report.made_evaluation import evaluation_run
from tests.report.made_search import ENVIRONMENT, finished_search
from tests.report.made_training import training_run, write_lines


def candidate(trial: int, **changes: Any) -> dict[str, Any]:
    params = 60_000_000 + 2_000_000 * trial
    return {
        "trial": trial, "digest": f"{trial:016x}", "cost": {"params": params, "flops": 2 * params, "kv_bytes": 100},
        "decided": "full", "status": "done", "error": None, "tokens": 20_480, "first_loss": 5.0 - 0.1 * trial,
        "loss": 4.0 - 0.05 * trial, "flops": 1e13, "seconds": 60.0,
        "proxies": {
            "perplexity": {"value": 150.0 - 4 * trial, "tokens": 8192, "seconds": 0.5, "flops": 1e12},
            "params": {"value": params},
        },
    } | changes  # fmt: skip


def _proxy(name: str, promises: str, value: float | None) -> dict[str, Any]:
    ends = {} if value is None else {"low": value - 0.3, "high": min(value + 0.1, 1.0)}
    both = {statistic: {"value": value, **ends} for statistic in ("kendall", "spearman")}
    cost = {"flops_per_candidate": 1e12, "seconds_per_candidate": 0.5, "shared_flops": 2e12}
    return {"name": name, "promises_lower_loss": promises, "cost": cost, "after": both, "before": both}


def proxies_run(folder: Path, *, finished: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, RunRecord(stage="proxies", command="slm-ray proxies --run runs/fine", options={"run": "fine"}))
    write_record(folder, ENVIRONMENT)
    failed = candidate(12, status="failed", error="the loss is nan", loss=None)
    # The last line of a trial counts: this one was trained again.
    lines = [candidate(0, status="failed", loss=None), *map(candidate, range(12)), failed]
    write_lines(folder, TrainedCandidate, lines)
    if finished:
        write_record(folder, ProxyReport.model_validate({
            "command": "slm-ray proxies --run runs/fine", "run": "runs/fine", "candidates": 12, "tokens": 20_480,
            "eval_tokens": 8192, "seed": 0, "resamples": 2000,
            "proxies": [_proxy("perplexity", "less", 0.9), _proxy("params", "more", None)],
            "training_cost": {"flops_per_candidate": 1e13, "seconds_per_candidate": 60.0},
        }))  # fmt: skip
    return folder


def pipeline_run(folder: Path, *, held_out: str = "tokens-python-docs") -> Path:
    finished_search(folder / "search", 30)
    training_run(folder / "pretrain", held_out=held_out)
    evaluation_run(folder / "evaluate")
    (folder / "logits").mkdir()
    (folder / "logits/manifest.json").write_text(json.dumps({"seconds": 90.0, "flops": 5e12}))
    stages = {"search": {"seconds": 3.0, "command": "slm-ray search"}, "pretrain": {"command": "x"}}
    state = {"command": "slm-ray pipeline --tokens 100k", "teacher": "smollm2-135m", "stages": stages}
    state |= {"version": SCHEMA_VERSION}
    (folder / "pipeline.json").write_text(json.dumps(state))
    return folder
