"""Makes run folders that look like a real search of SmolLM2-135M, without running one."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from slm_ray.records.base import write_record
from slm_ray.records.run import Environment, RunRecord
from slm_ray.records.search import SearchResult, Trial

NUM_LAYERS, HIDDEN, HEADS, NEURONS = 30, 576, 9, 1536
TEACHER_PARAMS, LOW, HIGH = 134515008, 53806003, 94160505
ENVIRONMENT = Environment(
    python="3.11.9", packages={"torch": "2.9.0", "ray": "2.50.0"}, system="Linux 6.1", machine="x86_64", cpu="Some CPU",
    cpus=2, memory_bytes=8 << 30, implementation="cpython",
)  # fmt: skip
OPTIONS = {"teacher": "smollm2-135m", "data": "python-docs", "space": "fine", "params": "0.7", "trials": 160, "seed": 0}
COMMAND = "slm-ray search --space fine"


def shape(sources: list[int], heads: list[int], neurons: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN, "source_layers": sources, "num_attention_heads": heads,
        "num_key_value_heads": [count // 3 for count in heads], "intermediate_size": neurons,
        "vocab_size": 49152,
    }  # fmt: skip


def cost_of(sizes: dict[str, Any]) -> dict[str, int]:
    heads, neurons = sum(sizes["num_attention_heads"]), sum(sizes["intermediate_size"])
    params = 49152 * HIDDEN + heads * HIDDEN * 64 * 8 // 3 + neurons * 3 * HIDDEN
    return {"params": params, "flops": 2 * params, "kv_bytes": heads // 3 * 256}


def teacher_shape() -> dict[str, Any]:
    return shape(list(range(NUM_LAYERS)), [HEADS] * NUM_LAYERS, [NEURONS] * NUM_LAYERS)


def make_trial(number: int, rng: random.Random) -> dict[str, Any]:
    keep = rng.uniform(0.25, 0.75)
    sources = sorted(rng.sample(range(NUM_LAYERS), rng.randint(20, NUM_LAYERS)))
    heads = [3 * min(3, max(0, round(rng.gauss(3 * keep, 0.8)))) for _ in sources]
    sizes = shape(sources, heads, [128 * min(12, max(0, round(rng.gauss(12 * keep, 2)))) for _ in sources])
    cost = cost_of(sizes)
    luck = rng.expovariate(1.6) * math.exp(-number / 300)
    value = 18.1 * math.exp(9.5 * max(1 - cost["params"] / TEACHER_PARAMS, 0.0) ** 2.4 + luck)
    measured = {"value": value, "stderr": 0.02 * value, "tokens": 512, "seconds": 0.3, "blocks": [3.9] * 8}
    return {
        "version": 2, "trial": number, "generation": number // 16, "origin": "nsga2", "digest": f"{number:016x}",
        "genes": "…", "status": "done", "error": None, "architecture": sizes, "cost": cost,
        "measurements": {"perplexity": measured}, "objectives": {"perplexity": value, "params": cost["params"]},
        "decided": "dominated" if rng.random() < 0.7 else "full", "seconds": 0.34,
        "finished_at": "2026-11-21T08:00:00Z",
    }  # fmt: skip


def make_trials(count: int, seed: int = 0, num_failed: int = 0) -> list[dict[str, Any]]:
    """Candidates inside the budget of 40% to 70%, then some that failed."""
    rng, trials = random.Random(seed), []
    while len(trials) < count:
        trial = make_trial(len(trials), rng)
        if LOW <= trial["cost"]["params"] <= HIGH:
            trials.append(trial)
    failed = {"status": "failed", "error": "out of memory", "measurements": {}, "objectives": None, "decided": None}
    extra = [make_trial(count + place, rng) | failed for place in range(num_failed)]
    return trials + extra


def pareto(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    best, front = math.inf, []
    for trial in sorted(trials, key=lambda one: one["cost"]["params"]):
        value = trial["measurements"]["perplexity"]["value"]
        if value < best:
            best = value
            front.append(trial)
    return front


def make_result(trials: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A result as JSON; ``changes`` replace parts of it."""
    done = [trial for trial in trials if trial["status"] == "done"]
    front = []
    for trial in pareto(done):
        trial["decided"] = "full"
        value = trial["measurements"]["perplexity"]["value"]
        front.append({
            "trial": trial["trial"], "digest": trial["digest"], "winner": None, "architecture": trial["architecture"],
            "cost": trial["cost"], "calibration_perplexity": value, "held_out_perplexity": 1.06 * value,
            "held_out_stderr": 0.025 * value, "objectives": trial["objectives"],
        })  # fmt: skip
    winners = [front[place] for place in (-1, len(front) // 2, 0)[: len(front)]]
    for number, entry in enumerate(winners):
        entry["winner"] = number
    sizes = winners[0]["architecture"] if winners else teacher_shape()
    measured = (("first-n", 90123.0, 800.0), ("random", 1_204_551.0, 30500.0), ("importance", 57.4, 1.3))
    baselines = [
        {"name": name, "architecture": sizes, "cost": cost_of(sizes), "held_out_perplexity": value,
         "held_out_stderr": e}
        for name, value, e in measured
    ]
    seconds = {"teacher": 1.2, "corpus": 3.0, "importance": 24.1, "search": 150.0, "final": 20.0, "export": 4.0}
    return {
        "version": 2, "command": COMMAND, "objectives": ["perplexity", "params"], "precision": "fp32",
        "teacher": {
            "name": "smollm2-135m", "family": "llama", "digest": "6cda465ec5bc7e29", "licence": "apache-2.0",
            "architecture": teacher_shape(),
            "cost": {"params": TEACHER_PARAMS, "flops": 269_000_000, "kv_bytes": 23040},
            "calibration_perplexity": 18.1, "held_out_perplexity": 19.3,
        },
        "corpus": {
            "name": "python-docs", "digest": "aa11bb22cc33dd44", "calibration_tokens": 8192, "held_out_tokens": 8192,
            "train_tokens": 100_000, "calibration_digest": "feed", "parts": {},
        },
        "budget": {"quantity": "params", "low": LOW, "high": HIGH}, "front": front, "baselines": baselines,
        "hypervolume": [
            {"evaluations": at, "seconds": 1.3 * at + 2, "value": 0.62 * (1 - math.exp(-at / 60))}
            for at in range(16, len(trials) + 1, 16)
        ],
        "spent": {
            "seconds": seconds, "processes": 1, "forward_tokens": 131072, "flops": 1.2e13, "candidates": len(trials),
            "failed": len(trials) - len(done), "cache_hits": 3, "resumed": 0, "busy_seconds": 140.0, "workers": 2,
        },
        "winners": [
            {"folder": f"winners/{one['winner']}", "trial": one["trial"], "num_bytes": 4 * one["cost"]["params"],
             "dtype": "float32"}
            for one in winners
        ],
    } | changes  # fmt: skip


def fitted(perplexity: float, stderr: float, *, kept: bool = True, tokens: int = 16384, **more: Any) -> dict[str, Any]:
    """What an entry of the front says of fitting its weights."""
    after = {"calibration_perplexity": perplexity - 1, "held_out_perplexity": perplexity, "held_out_stderr": stderr}
    return {
        "version": 2, "key": "k", "kept": kept, "tokens": tokens, "part": "train", "before": {}, "after": after,
        "unexplained": {"before": 0.5, "after": 0.1}, "settings": {}, **more,
    }  # fmt: skip


def write_search(
    folder: Path, trials: list[dict[str, Any]], result: dict[str, Any] | None, options: dict[str, Any] | None = None,
    command: str = COMMAND,
) -> Path:  # fmt: skip
    """Write a run folder; without a result it looks like a run that was killed. Everything is checked by its record."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, RunRecord(stage="search", command=command, options=OPTIONS if options is None else options))
    write_record(folder, ENVIRONMENT)
    lines = [Trial.model_validate(trial).model_dump_json() for trial in trials]
    (folder / Trial.FILE).write_text("".join(f"{line}\n" for line in lines))
    if result is not None:
        write_record(folder, SearchResult.model_validate(result))
    return folder


def finished_search(folder: Path, count: int = 160, num_failed: int = 2, **changes: Any) -> Path:
    """A whole run; ``changes`` replace parts of its result."""
    trials = make_trials(count, num_failed=num_failed)
    return write_search(folder, trials, make_result(trials, **changes), command=changes.get("command") or COMMAND)
