"""Makes folders that look like an evaluation, without loading a model."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

ENVIRONMENT = {"python": "3.11", "packages": {"torch": "2", "lm_eval": "0.4"}, "cpus": 2}
MODELS = (
    # name, role, of, parameters, skill: what it adds to the loss and takes from the scores
    ("runs/half/pretrain/winner-0.student/model", "model", None, 67_238_208, 0.0),
    ("runs/half/pretrain/winner-0.random/model", "model", None, 67_238_208, 0.9),
    ("smollm2-135m", "teacher", 0, 134_515_008, -0.5),
    ("random twin of runs/half/pretrain/winner-0.student/model", "random", 0, 67_238_208, 3.1),
    ("first layers like runs/half/pretrain/winner-0.student/model", "first-n", 0, 66_900_000, 2.2),
    ("EleutherAI/pythia-70m", "published", 0, 70_426_624, 0.4),
)
TASKS = (
    # name, title, chance, documents, members
    ("arc_easy", "ARC-Easy", 0.25, 2376, None),
    ("hellaswag", "HellaSwag", 0.25, 10042, None),
    ("piqa", "PIQA", 0.5, 1838, None),
    ("lambada_openai", "LAMBADA (OpenAI)", 0.0, 5153, None),
    ("blimp", "BLiMP", 0.5, 2000, ("blimp_anaphor", "blimp_island")),
    ("blimp_anaphor", "BLiMP, anaphor agreement", 0.5, 1000, None),
    ("blimp_island", "BLiMP, island effects", 0.5, 1000, None),
)
PROMPTS = ("Python is a", "The capital of France is", "def fibonacci(n):\n    ")


def _interval(value: float, stderr: float) -> list[float]:
    return [value - 1.96 * stderr, value + 1.96 * stderr]


def make_text(domain: str, skill: float) -> dict[str, Any]:
    loss, stderr = 3.2 + skill + (0.3 if domain == "books" else 0.0), 0.04
    bits, bits_stderr = loss / 2.7, stderr / 2.7
    return {
        "domain": domain, "corpus": domain, "corpus_digest": "c0", "loss": loss, "loss_stderr": stderr,
        "loss_interval": _interval(loss, stderr), "perplexity": math.exp(loss),
        "perplexity_stderr": stderr * math.exp(loss),
        "perplexity_interval": [math.exp(end) for end in _interval(loss, stderr)], "bits_per_byte": bits,
        "bits_per_byte_stderr": bits_stderr, "bits_per_byte_interval": _interval(bits, bits_stderr), "tokens": 8192,
        "bytes": 31000, "units": 16, "unit": "sequence", "tokens_digest": f"tokens-{domain}", "window": "packed",
        "stride": None, "sequence_length": 512, "documents": "separate", "seconds": 2.5,
    }  # fmt: skip


def make_task(task: tuple[Any, ...], skill: float) -> dict[str, Any]:
    name, title, chance, documents, members = task
    value = chance + (0.9 - chance) * math.exp(-0.6 * (skill + 0.8))
    stderr = math.sqrt(value * (1 - value) / documents)
    metric = {"value": value, "stderr": stderr, "interval": _interval(value, stderr), "better": "more"}
    metrics = {"acc": metric}
    if name == "lambada_openai":
        perplexity = math.exp(3 + skill)
        metrics["perplexity"] = {"value": perplexity, "stderr": 0.9, "interval": None, "better": "less"}
    return {
        "task": name, "title": title, "version": 1.0, "shots": 0, "limit": None, "documents": documents, "main": "acc",
        "chance": chance, "group": members is not None, "members": list(members) if members else None,
        "metrics": metrics, "source": "hub", "seconds": 30.0,
    }  # fmt: skip


def make_generation(name: str, skill: float) -> dict[str, Any]:
    bleu = 12 * math.exp(-skill)
    return {
        "prompts": 24, "settings": {"max_new_tokens": 64, "temperature": 0.0, "seed": 0},
        "metrics": {
            "bleu": {"value": bleu, "interval": [bleu - 1, bleu + 1], "better": "more"},
            "repetition": {"value": 0.1 + 0.05 * (skill + 1), "interval": None, "better": "less"},
            "distinct_2": {"value": 0.8, "interval": [0.7, 0.9], "better": None},
        },
        "samples": [{"prompt": p, "reference": "a language" if i == 0 else None,
                     "text": f" text number {i} of {name}\nwith a second line"} for i, p in enumerate(PROMPTS)],
        "seconds": 12.0,
    }  # fmt: skip


def _latency(median: float) -> dict[str, float]:
    return {"median": median, "p90": 1.2 * median, "p99": 1.5 * median, "min": 0.9 * median, "max": 2 * median}


def make_efficiency(params: int) -> dict[str, Any]:
    rate = 4e9 / params
    return {
        "params": params, "weights_bytes": 4 * params, "flops_per_token": 2 * params,
        "kv_bytes_per_token": params // 5000,
        "prefill": [
            {"prompt_tokens": n, "batch": 1, "tokens_per_second": 40 * rate, "latency_ms": _latency(25 * n / rate)}
            for n in (128, 512)
        ],
        "decode": [{"context_tokens": 128, "batch": 1, "tokens_per_second": rate, "latency_ms": _latency(1e3 / rate),
                    "runs": 64}],
        "peak_memory_bytes": 5 * params, "matmul_flops_per_second": 1.6e11, "mfu_prefill": 0.41, "threads": 2,
        "device": "cpu", "device_name": "Some CPU @ 2.5GHz", "precision": "fp32",
        "energy": {"joules_per_token": None, "source": "no meter"},
    }  # fmt: skip


def make_difference(kind: str, of: str, model: str, to: str, value: float, noise: float, better: str) -> dict[str, Any]:
    low, high = value - 1.96 * noise, value + 1.96 * noise
    good = (value < 0) == (better == "less")
    verdict = "within the noise" if low <= 0 <= high else "better" if good else "worse"
    return {
        "model": model, "to": to, "kind": kind, "of": of, "quantity": "loss" if kind == "text" else "acc",
        "paired": True, "difference": value, "low": low, "high": high, "stderr": noise, "better": better,
        "verdict": verdict,
    }  # fmt: skip


def make_result(domains: tuple[str, ...] = ("python-docs", "books"), **changes: Any) -> dict[str, Any]:
    """What ``evaluate.json`` says; ``changes`` replace parts of it."""
    names = [model[0] for model in MODELS]
    rows, differences, rng = [], [], random.Random(0)
    for name, role, of, params, skill in MODELS:
        texts, tasks = [make_text(d, skill) for d in domains], [make_task(task, skill) for task in TASKS]
        rows.append({
            "name": name, "role": role, "of": None if of is None else names[of], "folder": name,
            "digest": f"{params:016x}", "params": params, "tokenizer": "t1" if role == "published" else "t0",
            "error": None, "records": f"models/{len(rows)}", "lineage": None, "text": texts, "tasks": tasks,
            "generation": make_generation(name, skill), "efficiency": make_efficiency(params),
        })  # fmt: skip
        if name != names[0]:
            first = rows[0]
            for mine, other in zip(texts, first["text"], strict=True):
                gap = mine["loss"] - other["loss"]
                differences.append(make_difference("text", mine["domain"], name, names[0], gap, 0.01, "less"))
            for mine, other in zip(tasks, first["tasks"], strict=True):
                gap = mine["metrics"]["acc"]["value"] - other["metrics"]["acc"]["value"]
                noise = rng.choice((0.01, 0.2))
                differences.append(make_difference("task", mine["task"], name, names[0], gap, noise, "more"))
    return {
        "format": 2, "command": "python -m slm_ray.evaluate --model a --tasks small",
        "config": {"model": ",".join(names[:2]), "eval_tokens": 8192, "peers": "auto", "data": ",".join(domains),
                   "tasks": "small"},
        "environment": ENVIRONMENT, "precision": "fp32", "device": "cpu",
        "spent": {"seconds": 412.0, "models_loaded": 6,
                  "by_part": {"loading": 9.0, "text": 30.0, "task": 300.0, "generation": 60.0, "efficiency": 13.0}},
        "suites": {"small": ["arc_easy", "hellaswag", "piqa", "lambada_openai", "blimp"]},
        "notes": ["the published peer EleutherAI/pythia-160m could not be had: the hub was not reached"],
        "models": rows, "differences": differences,
    } | changes  # fmt: skip


def evaluation_run(folder: Path, result: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A whole evaluation's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    result = result or make_result(**changes)
    (folder / "config.json").write_text(json.dumps(result["config"]))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "evaluate.json").write_text(json.dumps(result))
    return folder


def unfinished_evaluation(folder: Path) -> Path:
    """An evaluation that was killed after some of its parts."""
    whole = make_result()
    evaluation_run(folder, whole)
    (folder / "evaluate.json").unlink()
    for number, model in enumerate(whole["models"][:2]):
        place = folder / f"models/model-{number}"
        place.mkdir(parents=True)
        more = {"model": model["name"], "params": model["params"], "key": "k", "settings_digested": {}}
        for part in model["text"]:
            sums = {"losses": [2.0 * part["loss"]] * 3, "counts": [2] * 3, "bits_per_byte": part["bits_per_byte"]}
            (place / f"text-{part['domain']}-00.json").write_text(json.dumps(sums | more))
        for part in model["tasks"][: 3 - number]:
            (place / f"task-{part['task']}-00.json").write_text(json.dumps(part | more))
    (folder / "models/model-1/generation-00.json").write_text(json.dumps(whole["models"][1]["generation"] | more))
    return folder
