"""How long the report of many runs takes to build, and how large its page is: 1,000 trials and 20 training runs.

    python benchmarks/report_scale.py

The records are made up, in a temporary folder: what is measured is reading, drawing and writing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from slm_ray.config.units import format_bytes

NUM_LAYERS, HIDDEN, TEACHER_PARAMS = 30, 576, 134_515_008
STARTS = {"student": (4.0, 2.6, 65e12), "random": (11.0, 4.5, 0.0), "first-n": (11.2, 3.9, 0.0)}
LIMIT_SECONDS, LIMIT_BYTES = 10.0, 8e6


def architecture(rng: random.Random) -> dict[str, Any]:
    heads = [3 * rng.randint(0, 3) for _ in range(NUM_LAYERS)]
    return {
        "hidden_size": HIDDEN, "source_layers": list(range(NUM_LAYERS)), "num_attention_heads": heads,
        "num_key_value_heads": [count // 3 for count in heads],
        "intermediate_size": [64 * rng.randint(0, 24) for _ in range(NUM_LAYERS)],
    }  # fmt: skip


def trial(number: int, rng: random.Random) -> dict[str, Any]:
    shape = architecture(rng)
    params = 28_311_552 + 98_304 * sum(shape["num_attention_heads"]) + 3 * HIDDEN * sum(shape["intermediate_size"])
    value = 18.1 * math.exp(9.5 * max(1 - params / TEACHER_PARAMS, 0.0) ** 2.4 + rng.expovariate(1.6))
    measured = {"value": value, "stderr": 0.02 * value, "tokens": 512, "seconds": 0.3, "blocks": [3.9] * 128}
    cost = {"params": params, "flops": 2 * params, "kv_bytes": 12_000}
    return {
        "trial": number, "generation": number // 16, "origin": "nsga2", "digest": f"{number:016x}", "genes": "0" * 400,
        "status": "done", "error": None, "architecture": shape, "cost": cost, "measurements": {"perplexity": measured},
        "objectives": {"perplexity": value, "params": params}, "decided": "full", "seconds": 0.34,
        "finished_at": "2026-11-21T08:00:00Z",
    }  # fmt: skip


def write_search(folder: Path, count: int) -> Path:
    rng = random.Random(0)
    trials = [trial(number, rng) for number in range(count)]
    front, least = [], math.inf
    for one in sorted(trials, key=lambda t: t["cost"]["params"]):
        value = one["measurements"]["perplexity"]["value"]
        if value < least:
            least = value
            kept = {key: one[key] for key in ("trial", "digest", "architecture", "cost", "objectives")}
            front.append(kept | {"winner": None, "calibration_perplexity": value, "held_out_perplexity": 1.06 * value,
                                 "held_out_stderr": 0.03 * value})  # fmt: skip
    front[-1]["winner"] = 0
    teacher = {
        "name": "smollm2-135m", "family": "llama", "digest": "0", "architecture": {
            "hidden_size": HIDDEN, "source_layers": list(range(NUM_LAYERS)), "num_attention_heads": [9] * NUM_LAYERS,
            "num_key_value_heads": [3] * NUM_LAYERS, "intermediate_size": [1536] * NUM_LAYERS},
        "cost": {"params": TEACHER_PARAMS}, "calibration_perplexity": 18.1, "held_out_perplexity": 19.3,
    }  # fmt: skip
    steps = range(16, count + 1, 16)
    result = {
        "command": "python -m slm_ray.search", "objectives": ["perplexity", "params"], "teacher": teacher,
        "front": front, "baselines": [], "winners": [{"folder": "winners/0", "trial": front[-1]["trial"]}],
        "hypervolume": [{"evaluations": e, "seconds": 1.3 * e, "value": 1 - math.exp(-e / 60)} for e in steps],
        "spent": {"seconds": {"search": 150.0}, "flops": 65e12, "candidates": count, "failed": 0},
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"teacher": "smollm2-135m", "space": "fine"}))
    (folder / "trials.jsonl").write_text("".join(json.dumps(one) + "\n" for one in trials))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_training(folder: Path, evaluations: int, steps: int) -> Path:
    folder.mkdir()
    config = {"student": "runs/half/winners/0", "distill": "full", "tokens": "1M"}
    (folder / "config.json").write_text(json.dumps(config))
    for start, (first, last, searched) in STARTS.items():
        place = folder / f"winner-0.{start}"
        place.mkdir()
        described = {"start": start, "params": 67_238_208, "search_flops": searched}
        (place / "model.json").write_text(json.dumps(described))
        lines = []
        for number in range(evaluations):
            tokens, loss = 10_000 * number, last + (first - last) * math.exp(-number / 20)
            flops = {"own": 5e8 * tokens, "teacher": 3e8 * tokens, "capture": 0.0}
            lines.append({"step": number, "tokens": tokens, "loss": loss, "stderr": 0.05, "bits_per_byte": loss / 2.7,
                          "flops": flops, "seconds": 10.0 * number})  # fmt: skip
        (place / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        step = {"loss": 3.0, "ce": 3.0, "tokens_per_second": 1000.0, "memory_bytes": 2**30, "cpu_percent": 190.0}
        (place / "steps.jsonl").write_text("".join(json.dumps(step | {"step": n}) + "\n" for n in range(steps)))
        (place / "result.json").write_text(json.dumps({"model": f"{place.name}/model", "energy": {"joules": 7.2e6}}))
    models = [{"name": f"winner-0.{start}"} for start in STARTS]
    (folder / "result.json").write_text(json.dumps({"models": models}))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--trainings", type=int, default=20, help="runs of three models each")
    parser.add_argument("--evaluations", type=int, default=200, help="of each model")
    parser.add_argument("--steps", type=int, default=2000, help="of each model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        runs = [write_search(base / "search", given.trials)]
        runs += [write_training(base / f"training-{n}", given.evaluations, given.steps) for n in range(given.trainings)]
        command = [sys.executable, "-m", "slm_ray.report", *map(str, runs), "--out", str(base / "all")]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, size = time.perf_counter() - start, (base / "all/report.html").stat().st_size
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        read = sum(file.stat().st_size for run in runs for file in run.rglob("*") if file.is_file())
    print(f"{given.trials:,} trials, {given.trainings} training runs of {len(STARTS)} models, {format_bytes(read)}")
    print(f"time  {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of one core (at most {LIMIT_SECONDS:g} s)")
    print(f"page  {size / 1e6:.2f} MB (at most {LIMIT_BYTES / 1e6:g} MB)")
    if seconds > LIMIT_SECONDS or size > LIMIT_BYTES:
        sys.exit("over the limit")


if __name__ == "__main__":
    main()
