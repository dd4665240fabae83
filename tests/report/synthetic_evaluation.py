"""An evaluation's result of format 2, without measuring anything."""

from __future__ import annotations

from typing import Any


def text(perplexity: float, domain: str = "python-docs") -> dict[str, Any]:
    return {
        "domain": domain, "corpus": domain, "corpus_digest": "aa11bb22cc33dd44", "loss": 3.0, "loss_stderr": 0.05,
        "loss_interval": [2.9, 3.1], "perplexity": perplexity, "perplexity_stderr": 1.0,
        "perplexity_interval": [perplexity - 2, perplexity + 2], "bits_per_byte": 1.2, "bits_per_byte_stderr": 0.02,
        "bits_per_byte_interval": [1.16, 1.24], "tokens": 8192, "bytes": 30000, "units": 16, "unit": "sequence",
        "tokens_digest": "ee55ff66", "window": "packed", "stride": None, "sequence_length": 512,
        "documents": "separate", "seconds": 1.0,
    }  # fmt: skip


def task(name: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "task": name, "title": name.replace("_", " "), "version": 1, "shots": 0, "limit": None, "documents": 100,
        "main": "acc_norm", "chance": 0.25, "group": False, "members": None, "source": "local: /data/me/tasks/x.jsonl",
        "seconds": 2.0, "metrics": {
            "acc": {"value": value - 0.02, "stderr": 0.05, "interval": None, "better": "more"},
            "acc_norm": {"value": value, "stderr": 0.05, "interval": [value - 0.1, value + 0.1], "better": "more"},
        }, **more,
    }  # fmt: skip


def efficiency() -> dict[str, Any]:
    latency = {"median": 10.0, "p90": 11.0, "p99": 12.0, "min": 9.0, "max": 13.0}
    return {
        "params": 1000, "weights_bytes": 4000, "flops_per_token": 2e8, "kv_bytes_per_token": 23040,
        "prefill": [{"prompt_tokens": 128, "batch": 1, "tokens_per_second": 900.0, "latency_ms": latency, "runs": 3}],
        "decode": [{"context_tokens": 128, "batch": 1, "tokens_per_second": 30.0, "latency_ms": latency, "runs": 3}],
        "peak_memory_bytes": 1 << 28, "matmul_flops_per_second": 1e10, "mfu_prefill": 0.3, "threads": 2,
        "device": "cpu", "device_name": "Some CPU", "precision": "fp32",
        "energy": {"joules_per_token": None, "source": "none"},
    }  # fmt: skip


def model(name: str, perplexity: float, score: float, role: str = "model", of: str | None = None) -> dict[str, Any]:
    return {
        "name": name, "role": role, "of": of, "folder": f"/models/{name}", "digest": f"digest-{len(name)}",
        "params": 67_238_208, "tokenizer": "t", "error": None, "records": f"models/{name}", "lineage": None,
        "text": [text(perplexity)], "tasks": [task("arc_easy", score), task("piqa", score + 0.1)],
        "generation": {
            "prompts": 2, "settings": {"temperature": 0.0}, "seconds": 1.0,
            "metrics": {"bleu": {"value": 12.5, "interval": [10.0, 15.0], "better": "more"},
                        "repetition": {"value": 0.2, "interval": None, "better": "less"}},
            "samples": [{"prompt": "Once", "reference": "upon a time", "text": "there was"}],
        },
        "efficiency": efficiency(),
    }  # fmt: skip


def difference(of: str, to: str, value: float) -> dict[str, Any]:
    return {
        "model": of, "to": to, "kind": "task", "of": "arc_easy", "quantity": "acc_norm", "paired": True,
        "difference": value, "low": value - 0.05, "high": value + 0.05, "stderr": 0.02, "better": None,
        "verdict": "within the noise",
    }  # fmt: skip


def evaluation() -> dict[str, Any]:
    """A student beside its teacher and its random twin, another model that nobody compares, and one that failed."""
    student, failed = model("winner-0", 30.0, 0.5), model("broken", 1.0, 0.1) | {"error": "it does not load"}
    others = [
        model("org/teacher", 20.0, 0.6, "teacher", "winner-0"),
        model("random twin of winner-0", 50_000.0, 0.25, "random", "winner-0"),
    ]
    return {
        "format": 2, "command": "python -m slm_ray.evaluate --model winner-0", "config": {"model": "winner-0"},
        "environment": {"python": "3.11", "cpus": 2}, "precision": "fp32", "device": "cpu",
        "spent": {"seconds": 12.0, "models_loaded": 3, "by_part": {"text": 3.0}},
        "suites": {"small": ["arc_easy", "piqa"]}, "notes": ["no published peer of winner-0 is known"],
        "models": [student, *others, model("unrelated", 40.0, 0.4), failed],
        "differences": [
            difference("org/teacher", "winner-0", 0.1), difference("random twin of winner-0", "winner-0", -0.2),
        ],
    }  # fmt: skip
