"""What a task's folder says, as rows of figures; a stage that trains or measures several models gives one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import perplexity_of_loss
from slm_ray.records.files import read_json
from slm_ray.report.training import TrainedRun, load_training

Row = dict[str, Any]


def read_metrics(stage: str, folder: Path) -> list[Row]:
    """The rows of a task, finished or not; none where it has left nothing yet.

    Args:
        stage: The stage's name.
        folder: The task's folder.
    """
    try:
        return _READERS[stage](folder)
    except UserError:
        return []


def _pretrain(folder: Path) -> list[Row]:
    run = load_training(folder)
    rows = [_trained(model) for model in run.models]
    if rows and run.result and (growth := run.result.growth):
        return [rows[-1] | {
            "layers": growth.layers, "sufficient_layers": growth.sufficient_layers, "stages": growth.stages,
            "reference_loss": growth.reference_loss, "all_tokens": growth.tokens, "all_flops": growth.flops.total,
        }]  # fmt: skip
    return rows


def _trained(model: TrainedRun) -> Row:
    first, last = model.first, model.last
    scratch = model.model.scratch if model.model else None
    row: Row = {
        "model": model.name, "start": model.start, "params": model.params,
        "matrix_params": scratch and scratch.params_without_embeddings,
        "learning_rate_used": scratch and scratch.learning_rate, "batch_size_used": scratch and scratch.batch_size,
        "tokens": last and last.tokens,
        "first_loss": first and first.loss, "loss": last and last.loss, "loss_stderr": last and last.stderr,
        "best_loss": min((one.loss for one in model.evaluations if one.loss is not None), default=None),
        "perplexity": perplexity_of_loss(last.loss) if last else None, "bits_per_byte": last and last.bits_per_byte,
        "own_flops": last and last.flops.own, "teacher_flops": last and last.flops.teacher,
        "search_flops": model.search_flops, "capture_flops": model.capture_flops,
        "flops": last and model.all_flops(last),
        "train_seconds": last and last.seconds, "tokens_per_second": model.tokens_per_second,
        "memory_bytes": model.memory_bytes, "cpu_percent": model.cpu_percent, "mfu": model.mfu,
        "joules": model.joules,
    }  # fmt: skip
    # What no model of this run has (a scratch model's rate, a GPU's utilisation) makes no column.
    optional = ("matrix_params", "learning_rate_used", "batch_size_used", "mfu", "joules")
    return {name: value for name, value in row.items() if value is not None or name not in optional}


def _json(path: Path) -> Mapping[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, Mapping) else {}


def _search(folder: Path) -> list[Row]:
    result = read_json(folder / "result.json")
    winner = next((entry for entry in result["front"] if entry.get("winner") == 0), result["front"][0])
    held_out = {entry["name"]: entry["held_out_perplexity"] for entry in result["baselines"]}
    row = {
        "params": winner["cost"]["params"], "forward_flops": winner["cost"]["flops"],
        "layers": len(winner["architecture"]["num_attention_heads"]),
        "calibration_perplexity": winner["calibration_perplexity"], "perplexity": winner["held_out_perplexity"],
        "perplexity_stderr": winner["held_out_stderr"], "teacher_perplexity": result["teacher"]["held_out_perplexity"],
        **{f"{name}_perplexity": value for name, value in held_out.items()},
        "hypervolume": result["hypervolume"][-1]["value"] if result["hypervolume"] else None,
        "front": len(result["front"]), "candidates": result["spent"]["candidates"], "flops": result["spent"]["flops"],
        "seconds": round(sum(result["spent"]["seconds"].values()), 3),
    }  # fmt: skip
    return [row]


def _logits(folder: Path) -> list[Row]:
    manifest = read_json(folder / "manifest.json")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    request = manifest["request"]
    tokens = request["num_sequences"] * request["sequence_length"]
    row = {"bytes": size, "flops": manifest["flops"], "seconds": manifest["seconds"]}
    return [row | {"tokens": tokens, "bytes_per_token": round(size / tokens, 3)}]


def _evaluate(folder: Path) -> list[Row]:
    return [_evaluated(model) for model in read_json(folder / "evaluate.json")["models"]]


def _evaluated(model: Mapping[str, Any]) -> Row:
    name = Path(str(model["name"]))
    # An exported model lies in RUN/NAME/model, and a winner in RUN/winners/0: its own name is no name.
    label = name.parent.name if name.name == "model" else f"winner-{name.name}" if name.parent.name == "winners" else ""
    row: Row = {"model": label or model["name"], "role": model.get("role"), "params": model.get("params"),
                "model_error": model.get("error")}  # fmt: skip
    row = {name: value for name, value in row.items() if value is not None}
    texts = model.get("text") or []
    for number, text in enumerate(texts):
        prefix = "" if number == 0 else f"{text['domain']}."
        row |= {f"{prefix}{name}": text.get(name) for name in ("loss", "loss_stderr", "perplexity", "bits_per_byte")}
    for task in model.get("tasks") or []:
        main = (task.get("metrics") or {}).get(task.get("main")) or {}
        row |= {f"{task['task']}.{task['main']}": main.get("value"), f"{task['task']}.stderr": main.get("stderr")}
    for name, metric in ((model.get("generation") or {}).get("metrics") or {}).items():
        row[f"generation.{name}"] = metric.get("value")
    return row | _efficiency(model.get("efficiency") or {})


def _efficiency(record: Mapping[str, Any]) -> Row:
    row: Row = {}
    for kind in ("prefill", "decode"):
        entries = record.get(kind) or []
        if entries:
            row[f"{kind}_tokens_per_second"] = entries[-1].get("tokens_per_second")
    for name in ("peak_memory_bytes", "kv_bytes_per_token", "flops_per_token"):
        if record.get(name) is not None:
            row[name] = record[name]
    return row


def _proxies(folder: Path) -> list[Row]:
    report = read_json(folder / "correlations.json")
    rows = []
    for proxy in report["proxies"]:
        row: Row = {"proxy": proxy["name"], "candidates": report["candidates"], "trained_tokens": report["tokens"]}
        for against in ("after", "before"):
            for statistic, entry in (proxy[against] or {}).items():
                name = statistic if against == "after" else f"{statistic}_before"
                row |= {name: entry["value"], f"{name}_low": entry["low"], f"{name}_high": entry["high"]}
        rows.append(row | proxy["cost"])
    return rows


def _tokenizer(folder: Path) -> list[Row]:
    record = _json(folder / "vocabulary.json")
    return [{name: value for name, value in record.items() if name != "version" and isinstance(value, (int, float))}]


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    "search": _search, "logits": _logits, "pretrain": _pretrain, "evaluate": _evaluate, "proxies": _proxies,
    "tokenizer": _tokenizer,
}  # fmt: skip


def read_curves(stage: str, folder: Path) -> list[Row]:
    """Every evaluation of every model that a task trained, a row each."""
    if stage != "pretrain":
        return []
    try:
        models = load_training(folder).models
    except UserError:
        return []
    return [
        {
            "model": model.name, "params": model.params, "tokens": one.tokens, "loss": one.loss,
            "loss_stderr": one.stderr, "bits_per_byte": one.bits_per_byte, "own_flops": one.flops.own,
            "teacher_flops": one.flops.teacher,
            "flops": model.all_flops(one),
            "seconds": one.seconds,
        }
        for model in models
        for one in model.evaluations
    ]  # fmt: skip
