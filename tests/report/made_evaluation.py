"""Makes folders that look like an evaluation, without loading a model."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from slm_ray.records.base import write_record
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.records.run import RunRecord

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
COMMAND = "slm-ray evaluate --model a --tasks small"


def _interval(value: float, stderr: float) -> list[float]:
    return [value - 1.96 * stderr, value + 1.96 * stderr]


def _figure(value: float, stderr: float | None = None, better: str | None = "more") -> dict[str, Any]:
    interval = None if stderr is None else _interval(value, stderr)
    return {"value": value, "stderr": stderr, "interval": interval, "better": better}


def make_text(domain: str, skill: float) -> dict[str, Any]:
    loss, stderr = 3.2 + skill + (0.3 if domain == "books" else 0.0), 0.04
    return {
        "domain": domain, "corpus": domain, "corpus_digest": "c0", "loss": loss, "loss_stderr": stderr,
        "loss_interval": _interval(loss, stderr), "perplexity": math.exp(loss),
        "perplexity_stderr": stderr * math.exp(loss),
        "perplexity_interval": [math.exp(end) for end in _interval(loss, stderr)], "bits_per_byte": loss / 2.7,
        "bits_per_byte_stderr": stderr / 2.7, "bits_per_byte_interval": _interval(loss / 2.7, stderr / 2.7),
        "tokens": 8192, "bytes": 31000, "units": 16, "unit": "sequence", "tokens_digest": f"tokens-{domain}",
        "window": "packed", "stride": None, "sequence_length": 512, "documents": "separate",
    }  # fmt: skip


def make_task(task: tuple[Any, ...], skill: float) -> dict[str, Any]:
    name, title, chance, documents, members = task
    value = chance + (0.9 - chance) * math.exp(-0.6 * (skill + 0.8))
    metrics = {"acc": _figure(value, math.sqrt(value * (1 - value) / documents))}
    if name == "lambada_openai":
        metrics["perplexity"] = _figure(math.exp(3 + skill), better="less")
    return {
        "task": name, "title": title, "version": "1.0", "shots": 0, "limit": None, "documents": documents,
        "main": "acc", "chance": chance, "members": members, "metrics": metrics, "source": "hub",
    }  # fmt: skip


def make_generation(name: str, skill: float) -> dict[str, Any]:
    return {
        "prompts": 24,
        "settings": {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 0, "references": True,
                     "prompts_digest": "p"},
        "metrics": {"bleu": _figure(12 * math.exp(-skill), 0.5),
                    "repetition": _figure(0.1 * (skill + 1), better="less"),
                    "distinct_2": _figure(0.8, 0.05, None)},
        "samples": [
            {"id": str(i), "domain": "d", "prompt": prompt, "reference": "a language" if i == 0 else None, "tokens": 9,
             "text": f" text number {i} of {name}\nwith a second line", "ended": True, "cut": 0}
            for i, prompt in enumerate(PROMPTS)
        ],
        "notes": [],
    }  # fmt: skip


def make_efficiency(params: int) -> dict[str, Any]:
    rate = 4e9 / params

    def latency(median: float) -> dict[str, float]:
        return {"median": median, "p90": 1.2 * median, "p99": 1.5 * median, "min": 0.9 * median, "max": 2 * median}

    return {
        "params": params, "weights_bytes": 4 * params, "flops_per_token": 2 * params, "flops_sequence_length": 512,
        "kv_bytes_per_token": params // 5000,
        "prefill": [
            {"tokens": n, "batch": 1, "tokens_per_second": 40 * rate, "latency_ms": latency(25 * n / rate), "runs": 3}
            for n in (128, 512)
        ],
        "decode": [{"tokens": 128, "batch": 1, "tokens_per_second": rate, "latency_ms": latency(1e3 / rate),
                    "runs": 64}],
        "peak_memory_bytes": 5 * params, "memory": None, "threads": 2, "device": "cpu",
        "device_name": "Some CPU @ 2.5GHz", "precision": "fp32",
        "energy": {"joules_per_token": None, "source": "no meter"}, "notes": [],
    }  # fmt: skip


def make_difference(kind: str, of: str, model: str, to: str, value: float, noise: float, better: str) -> dict[str, Any]:
    low, high = value - 1.96 * noise, value + 1.96 * noise
    good = (value < 0) == (better == "less")
    return {
        "model": model, "to": to, "kind": kind, "of": of, "quantity": "loss" if kind == "text" else "acc",
        "paired": True, "difference": value, "low": low, "high": high, "stderr": noise, "better": better,
        "verdict": "within the noise" if low <= 0 <= high else "better" if good else "worse",
    }  # fmt: skip


def make_result(domains: tuple[str, ...] = ("python-docs", "books"), **changes: Any) -> dict[str, Any]:
    """What ``evaluate.json`` says; ``changes`` replace parts of it."""
    names = [model[0] for model in MODELS]
    rows: list[dict[str, Any]] = []
    differences, rng = [], random.Random(0)
    for name, role, of, params, skill in MODELS:
        texts, tasks = [make_text(d, skill) for d in domains], [make_task(task, skill) for task in TASKS]
        rows.append({
            "name": name, "role": role, "of": None if of is None else names[of], "folder": name,
            "digest": f"{params:016x}", "params": params, "tokenizer": "t1" if role == "published" else "t0",
            "records": f"models/{len(rows)}", "text": texts, "tasks": tasks,
            "generation": make_generation(name, skill), "efficiency": make_efficiency(params),
        })  # fmt: skip
        for mine, other in zip(texts, rows[0]["text"], strict=True) if name != names[0] else ():
            gap = mine["loss"] - other["loss"]
            differences.append(make_difference("text", mine["domain"], name, names[0], gap, 0.01, "less"))
        for mine, other in zip(tasks, rows[0]["tasks"], strict=True) if name != names[0] else ():
            gap, noise = mine["metrics"]["acc"]["value"] - other["metrics"]["acc"]["value"], rng.choice((0.01, 0.2))
            differences.append(make_difference("task", mine["task"], name, names[0], gap, noise, "more"))
    return {
        "version": 2, "command": COMMAND,
        "config": {"model": ",".join(names[:2]), "eval_tokens": "8192", "data": ",".join(domains), "tasks": "small"},
        "environment": {"python": "3.11", "cpus": 2}, "precision": "fp32", "device": "cpu",
        "spent": {"seconds": 412.0, "models_loaded": 6, "by_part": {"loading": 9.0, "text": 30.0, "task": 300.0}},
        "suites": {"small": ["arc_easy", "hellaswag", "piqa", "lambada_openai", "blimp"]},
        "notes": ["the published peer EleutherAI/pythia-160m could not be had: the hub was not reached"],
        "models": rows, "differences": differences,
    } | changes  # fmt: skip


def parsed(**changes: Any) -> EvaluationResult:
    """A result as its record."""
    return EvaluationResult.model_validate(make_result(**changes))


def evaluation_run(folder: Path, result: dict[str, Any] | None = None) -> Path:
    """A whole evaluation's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = EvaluationResult.model_validate(result or make_result())
    write_record(folder, RunRecord(stage="evaluate", command=COMMAND, options=dict(found.config)))
    write_record(folder, found)
    return folder


def unfinished_evaluation(folder: Path) -> Path:
    """An evaluation that was killed after some of its parts."""
    whole = make_result()
    evaluation_run(folder, whole)
    (folder / EvaluationResult.FILE).unlink()
    for number, model in enumerate(whole["models"][:2]):
        place = folder / f"models/model-{number}"
        place.mkdir(parents=True)
        shared = {"version": 2, "key": "k", "settings": {}, "model": model["name"], "params": model["params"],
                  "seconds": 1.0}  # fmt: skip
        for text in model["text"]:
            record = {"kind": "text", "name": text["domain"], "figures": text, "losses": [6.0], "counts": [2],
                      "unit_bytes": None, "text_digest": None}  # fmt: skip
            (place / f"text-{text['domain']}-00.json").write_text(json.dumps(shared | record))
        for task in model["tasks"][: 3 - number]:
            record = {"kind": "task", "name": task["task"], "tasks": [task], "values": {}, "cut_requests": 0}
            (place / f"task-{task['task']}-00.json").write_text(json.dumps(shared | record))
    return folder
