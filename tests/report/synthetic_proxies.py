"""Makes folders that look like a report on proxies, without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = {"run": "runs/fine", "tokens": "20k", "candidates": 12, "proxies": "perplexity,params", "command": "x"}


def candidate(trial: int) -> dict[str, Any]:
    return {
        "trial": trial, "digest": f"{trial:016x}", "cost": {"params": 60_000_000 + 2_000_000 * trial},
        "decided": "full", "status": "done", "error": None, "tokens": 20_480, "first_loss": 5.0 - 0.1 * trial,
        "loss": 4.0 - 0.05 * trial,
        "flops": 1e13, "seconds": 60.0,
        "proxies": {
            "perplexity": {"value": 150.0 - 4 * trial, "tokens": 8192, "seconds": 0.5, "flops": 1e12},
            "params": {"value": 60_000_000 + 2_000_000 * trial, "tokens": 0, "seconds": 0.0, "flops": 0.0},
        },
    }  # fmt: skip


def _correlation(value: float | None) -> dict[str, Any]:
    ends = {"low": None, "high": None} if value is None else {"low": value - 0.3, "high": min(value + 0.1, 1.0)}
    return {"value": value, **ends, "note": None if value is not None else "all values are equal"}


def correlations() -> dict[str, Any]:
    def proxy(name: str, promises: str, value: float | None) -> dict[str, Any]:
        both = {"kendall": _correlation(value), "spearman": _correlation(value)}
        cost = {"flops_per_candidate": 1e12, "seconds_per_candidate": 0.5, "shared_flops": 2e12}
        return {"name": name, "promises_lower_loss": promises, "cost": cost, "after": both, "before": both}

    return {
        "command": "python -m slm_ray.proxies --run runs/fine", "run": "runs/fine", "candidates": 12, "tokens": 20_480,
        "eval_tokens": 8192, "seed": 0, "resamples": 2000, "failed": [],
        "proxies": [proxy("perplexity", "less", 0.9), proxy("params", "more", None)],
        "training_cost": {"flops_per_candidate": 1e13, "seconds_per_candidate": 60.0},
    }  # fmt: skip


def proxies_run(folder: Path, *, finished: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11"}))
    failed = candidate(12) | {"status": "failed", "error": "the loss is nan", "loss": None}
    # The last line of a trial counts: this one was trained again.
    lines = [candidate(0) | {"status": "failed", "loss": None}, *map(candidate, range(12)), failed]
    (folder / "candidates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "correlations.json").write_text(json.dumps(correlations()))
    return folder
