"""Makes run folders that look like a real search of SmolLM2-135M, without running one."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

NUM_LAYERS, HIDDEN, HEADS, KV_HEADS, NEURONS = 30, 576, 9, 3, 1536
EMBEDDING, HEAD_PARAMS, NEURON_PARAMS = 49152 * HIDDEN, HIDDEN * 64 * 8 // 3, 3 * HIDDEN
TEACHER_PARAMS = 134515008


def architecture(sources: list[int], heads: list[int], neurons: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "source_layers": sources,
        "num_attention_heads": heads,
        "num_key_value_heads": [h // 3 for h in heads],
        "intermediate_size": neurons,
    }


def cost_of(shape: dict[str, Any]) -> dict[str, int]:
    heads, neurons = sum(shape["num_attention_heads"]), sum(shape["intermediate_size"])
    params = EMBEDDING + heads * HEAD_PARAMS + neurons * NEURON_PARAMS
    return {"params": params, "flops": 2 * params, "kv_bytes": heads // 3 * 256}


def teacher_architecture() -> dict[str, Any]:
    return architecture(list(range(NUM_LAYERS)), [HEADS] * NUM_LAYERS, [NEURONS] * NUM_LAYERS)


def random_architecture(rng: random.Random) -> dict[str, Any]:
    keep = rng.uniform(0.25, 0.75)
    sources = sorted(rng.sample(range(NUM_LAYERS), rng.randint(20, NUM_LAYERS)))
    heads = [3 * min(3, max(0, round(rng.gauss(3 * keep, 0.8)))) for _ in sources]
    neurons = [128 * min(12, max(0, round(rng.gauss(12 * keep, 2)))) for _ in sources]
    return architecture(sources, heads, neurons)


def perplexity_at(params: float, luck: float) -> float:
    return 18.1 * math.exp(9.5 * (1 - params / TEACHER_PARAMS) ** 2.4 + luck)


def make_trial(number: int, rng: random.Random) -> dict[str, Any]:
    shape = random_architecture(rng)
    cost = cost_of(shape)
    value = perplexity_at(cost["params"], rng.expovariate(1.6) * math.exp(-number / 300))
    decided = "dominated" if rng.random() < 0.7 else "full"
    return {
        "trial": number,
        "generation": number // 16,
        "origin": "seed" if number < 4 else "nsga2",
        "digest": f"{number:016x}",
        "genes": "…",
        "status": "done",
        "error": None,
        "architecture": shape,
        "cost": cost,
        "measurements": {
            "perplexity": {"value": value, "stderr": 0.02 * value, "tokens": 512, "seconds": 0.3, "blocks": [3.9] * 8}
        },
        "objectives": {"perplexity": value, "params": cost["params"]},
        "decided": decided,
        "seconds": 0.34,
        "finished_at": "2026-11-21T08:00:00Z",
    }


def failed_trial(number: int) -> dict[str, Any]:
    return {
        "trial": number,
        "origin": "nsga2",
        "status": "failed",
        "error": "out of memory",
        "architecture": None,
        "cost": {},
    }


def pareto(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    best, front = math.inf, []
    for trial in sorted(trials, key=lambda t: t["cost"]["params"]):
        value = trial["measurements"]["perplexity"]["value"]
        if value < best:
            best = value
            front.append(trial)
    return front


def make_result(trials: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    done = [trial for trial in trials if trial["status"] == "done"]
    for trial in pareto(done):
        trial["decided"] = "full"
    front = [
        {
            "trial": t["trial"],
            "digest": t["digest"],
            "winner": None,
            "architecture": t["architecture"],
            "cost": t["cost"],
            "calibration_perplexity": t["measurements"]["perplexity"]["value"],
            "held_out_perplexity": t["measurements"]["perplexity"]["value"] * 1.06,
            "held_out_stderr": 0.025 * t["measurements"]["perplexity"]["value"],
            "objectives": t["objectives"],
        }
        for t in pareto(done)
    ]
    winners = [front[i] for i in (-1, len(front) // 2, 0)[: len(front)]]
    for number, entry in enumerate(winners):
        entry["winner"] = number
    shape = winners[0]["architecture"] if winners else teacher_architecture()
    measured = (("first-n", 90123.0, 800.0), ("random", 1_204_551.0, 30500.0), ("importance", 57.4, 1.3))
    baselines = [
        {"name": n, "architecture": shape, "cost": cost_of(shape), "held_out_perplexity": p, "held_out_stderr": s}
        for n, p, s in measured
    ]
    steps = range(16, len(trials) + 1, 16)
    result = {
        "command": "python -m slm_ray.search --space fine",
        "objectives": ["perplexity", "params"],
        "teacher": {
            "name": "smollm2-135m",
            "family": "llama",
            "digest": "6cda465ec5bc7e29",
            "licence": "apache-2.0",
            "architecture": teacher_architecture(),
            "cost": {"params": TEACHER_PARAMS, "flops": 2.7e8, "kv_bytes": 23040},
            "calibration_perplexity": 18.1,
            "held_out_perplexity": 19.3,
        },
        "corpus": {
            "name": "python-docs",
            "digest": "aa11bb22cc33dd44",
            "calibration_tokens": 8192,
            "held_out_tokens": 8192,
        },
        "budget": {"quantity": "params", "low": 53806003, "high": 94160505},
        "front": front,
        "baselines": baselines,
        "hypervolume": [
            {"evaluations": e, "seconds": 1.3 * e + 2, "value": 0.62 * (1 - math.exp(-e / 60))} for e in steps
        ],
        "spent": {
            "seconds": {
                "teacher": 1.2,
                "corpus": 3.0,
                "importance": 24.1,
                "search": 150.0,
                "final": 20.0,
                "export": 4.0,
            },
            "forward_tokens": 131072,
            "flops": 1.2e13,
            "candidates": len(trials),
            "failed": len(trials) - len(done),
            "cache_hits": 3,
        },
        "winners": [{"folder": f"winners/{e['winner']}", "trial": e["trial"]} for e in winners],
    }
    return {**result, **changes}


ENVIRONMENT = {
    "python": "3.11.9",
    "packages": {"torch": "2.9.0", "transformers": "5.20.0", "ray": "2.50.0"},
    "system": "Linux 6.1",
    "machine": "x86_64",
    "cpu": "Some CPU @ 2.5GHz",
    "cpus": 2,
    "memory_bytes": 8 << 30,
    "implementation": "cpython",
}
CONFIG = {"teacher": "smollm2-135m", "space": "fine", "params": "0.7", "trials": 160, "seed": 0, "algorithm": "nsga2"}


def make_trials(count: int, seed: int = 0, num_failed: int = 0) -> list[dict[str, Any]]:
    """Candidates inside the budget of 40% to 70%, then some that failed."""
    rng, trials = random.Random(seed), []
    while len(trials) < count:
        trial = make_trial(len(trials), rng)
        if 53806003 <= trial["cost"]["params"] <= 94160505:
            trials.append(trial)
    return trials + [failed_trial(count + i) for i in range(num_failed)]


def write_run(folder: Path, trials: list[dict[str, Any]], result: dict[str, Any] | None, config: Any = CONFIG) -> Path:
    """Write a run folder; without a result it looks like a run that was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def finished_run(folder: Path, count: int = 160, num_failed: int = 2, **changes: Any) -> Path:
    """A whole run; ``changes`` replace parts of its result."""
    trials = make_trials(count, num_failed=num_failed)
    return write_run(folder, trials, make_result(trials, **changes))
