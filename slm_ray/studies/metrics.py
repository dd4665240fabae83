"""What a task's folder says, as rows of figures; a stage that trains or measures several models gives one row each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import perplexity_of_loss
from slm_ray.records.base import read_record
from slm_ray.records.data import ExtendedVocabulary, TrainedTokenizer
from slm_ray.records.evaluation import EvaluationResult, ModelFigures
from slm_ray.records.logits import StoreManifest
from slm_ray.records.measurement import EfficiencyFigures
from slm_ray.records.proxies import ProxyReport
from slm_ray.records.search import SearchResult
from slm_ray.report.training import TrainedRun, load_training

Row = dict[str, Any]


def read_metrics(stage: str, folder: Path) -> list[Row]:
    """The rows of a task, finished or not; none where it has left nothing yet."""
    try:
        return _READERS[stage](folder)
    except UserError:
        return []


def _pretrain(folder: Path) -> list[Row]:
    run = load_training(folder)
    rows = [_trained(model) for model in run.models]
    if rows and run.result is not None and (growth := run.result.growth):
        return [rows[-1] | {
            "layers": growth.layers, "sufficient_layers": growth.sufficient_layers, "stages": growth.stages,
            "reference_loss": growth.reference_loss, "all_tokens": growth.tokens,
            "all_flops": growth.flops.total,
        }]  # fmt: skip
    return rows


def _trained(run: TrainedRun) -> Row:
    first, last, scratch = run.first, run.last, run.scratch
    row: Row = {
        "model": run.name, "start": run.start, "params": run.params,
        "matrix_params": scratch and scratch.params_without_embeddings,
        "learning_rate_used": scratch and scratch.learning_rate, "batch_size_used": scratch and scratch.batch_size,
        "tokens": last and last.tokens, "first_loss": first and first.loss, "loss": last and last.loss,
        "loss_stderr": last and last.stderr,
        "best_loss": min((one.loss for one in run.evaluations if one.loss is not None), default=None),
        "perplexity": perplexity_of_loss(last.loss) if last else None, "bits_per_byte": last and last.bits_per_byte,
        "own_flops": last and last.flops.own, "teacher_flops": last and last.flops.teacher,
        "search_flops": run.search_flops, "capture_flops": run.capture_flops, "flops": last and run.all_flops(last),
        "train_seconds": last and last.seconds, "tokens_per_second": run.tokens_per_second,
        "memory_bytes": run.memory_bytes, "cpu_percent": run.cpu_percent, "mfu": run.mfu, "joules": run.joules,
    }  # fmt: skip
    # What no model of this run has (a scratch model's rate, a GPU's utilisation) makes no column.
    optional = ("matrix_params", "learning_rate_used", "batch_size_used", "mfu", "joules")
    return {name: value for name, value in row.items() if value is not None or name not in optional}


def _search(folder: Path) -> list[Row]:
    result = read_record(folder, SearchResult)
    winner = next((member for member in result.front if member.winner == 0), result.front[0])
    return [{
        "params": winner.cost.params, "forward_flops": winner.cost.flops,
        "layers": len(winner.architecture.num_attention_heads),
        "calibration_perplexity": winner.calibration_perplexity, "perplexity": winner.held_out_perplexity,
        "perplexity_stderr": winner.held_out_stderr, "teacher_perplexity": result.teacher.held_out_perplexity,
        **{f"{baseline.name}_perplexity": baseline.held_out_perplexity for baseline in result.baselines},
        "hypervolume": result.hypervolume[-1].value if result.hypervolume else None,
        "front": len(result.front), "candidates": result.spent.candidates, "flops": result.spent.flops,
        "seconds": round(sum(result.spent.seconds.values()), 3),
    }]  # fmt: skip


def _logits(folder: Path) -> list[Row]:
    manifest = read_record(folder, StoreManifest)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return [{
        "bytes": size, "flops": manifest.flops, "seconds": manifest.seconds, "tokens": manifest.num_tokens,
        "bytes_per_token": round(size / manifest.num_tokens, 3),
    }]  # fmt: skip


def _evaluate(folder: Path) -> list[Row]:
    return [_evaluated(model) for model in read_record(folder, EvaluationResult).models]


def _evaluated(model: ModelFigures) -> Row:
    name = Path(model.name)
    # An exported model lies in RUN/NAME/model, and a winner in RUN/winners/0: its own name is no name.
    label = name.parent.name if name.name == "model" else f"winner-{name.name}" if name.parent.name == "winners" else ""
    row: Row = {"model": label or model.name, "role": model.role, "params": model.params, "model_error": model.error}
    row = {name: value for name, value in row.items() if value is not None}
    for number, text in enumerate(model.text):
        prefix = "" if number == 0 else f"{text.domain}."
        row |= {f"{prefix}loss": text.loss, f"{prefix}loss_stderr": text.loss_stderr,
                f"{prefix}perplexity": text.perplexity, f"{prefix}bits_per_byte": text.bits_per_byte}  # fmt: skip
    for task in model.tasks:
        main = task.metrics.get(task.main)
        row |= {f"{task.task}.{task.main}": main and main.value, f"{task.task}.stderr": main and main.stderr}
    for metric, figure in (model.generation.metrics if model.generation else {}).items():
        row[f"generation.{metric}"] = figure.value
    return row | (_efficiency(model.efficiency) if model.efficiency else {})


def _efficiency(found: EfficiencyFigures) -> Row:
    row: Row = {
        "prefill_tokens_per_second": found.prefill[-1].tokens_per_second if found.prefill else None,
        "decode_tokens_per_second": found.decode[-1].tokens_per_second if found.decode else None,
        "peak_memory_bytes": found.peak_memory_bytes, "kv_bytes_per_token": found.kv_bytes_per_token,
        "flops_per_token": found.flops_per_token,
    }  # fmt: skip
    return {name: value for name, value in row.items() if value is not None}


def _proxies(folder: Path) -> list[Row]:
    report = read_record(folder, ProxyReport)
    rows = []
    for proxy in report.proxies:
        row: Row = {"proxy": proxy.name, "candidates": report.candidates, "trained_tokens": report.tokens}
        for suffix, against in (("", proxy.after), ("_before", proxy.before)):
            for statistic in ("kendall", "spearman") if against else ():
                entry = getattr(against, statistic)
                name = f"{statistic}{suffix}"
                row |= {name: entry.value, f"{name}_low": entry.low, f"{name}_high": entry.high}
        rows.append(row | proxy.cost.to_json())
    return rows


def _tokenizer(folder: Path) -> list[Row]:
    is_model = (folder / "config.json").is_file()
    record = read_record(folder, ExtendedVocabulary if is_model else TrainedTokenizer).to_json()
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
            "model": run.name, "params": run.params, "tokens": one.tokens, "loss": one.loss, "loss_stderr": one.stderr,
            "bits_per_byte": one.bits_per_byte, "own_flops": one.flops.own, "teacher_flops": one.flops.teacher,
            "flops": run.all_flops(one), "seconds": one.seconds,
        }
        for run in models
        for one in run.evaluations
    ]  # fmt: skip
