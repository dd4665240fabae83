"""An evaluation's results as tables of figures, straight from ``evaluate.json`` (format 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slm_ray.records import metric_names as names
from slm_ray.report.evaluation_names import names_of
from slm_ray.report.records import interval_of, items, mapping, number

NamedTable = tuple[str, tuple[str, ...], tuple[tuple[Any, ...], ...]]

_TEXT = (
    "domain", "corpus", "loss", "loss_stderr", "perplexity", "perplexity_interval", "bits_per_byte",
    "bits_per_byte_interval", "tokens", "bytes", "window", "documents", "corpus_digest", "tokens_digest",
)  # fmt: skip
_DIFFERENCE = ("model", "to", "kind", "of", "quantity", "paired", "difference", "low", "high", "better", "verdict")
_EFFICIENCY = (
    "params", "weights_bytes", "flops_per_token", "kv_bytes_per_token", "peak_memory_bytes", "mfu_prefill", "threads",
    "device", "device_name", "precision",
)  # fmt: skip
_LATENCY = ("median", "p90", "p99", "min", "max")


def main_metric(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metric that a task is known by."""
    return mapping(mapping(task.get("metrics")).get(str(task.get("main"))))


def evaluation_tables(result: Mapping[str, Any]) -> Iterator[NamedTable]:
    """Name, columns and rows of every table."""
    short = names_of(items(result.get("models")))
    models = [{**model, "name": short.get(str(model.get("name")))} for model in items(result.get("models"))]
    yield _texts(models)
    yield _tasks(models)
    yield _differences(items(result.get("differences")), short)
    yield _generation(models)
    yield _samples(models)
    yield _efficiency(models)
    yield _speed(models)


def _flat(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Columns with intervals as two columns."""
    named = [(f"{name.removesuffix('_interval')}_low", f"{name.removesuffix('_interval')}_high")
             if name.endswith("_interval") else (name,) for name in columns]  # fmt: skip
    return tuple(part for parts in named for part in parts)


def _texts(models: Sequence[Mapping[str, Any]]) -> NamedTable:
    rows = []
    for model in models:
        for text in items(model.get("text")):
            cells = [interval_of(text.get(name)) if name.endswith("_interval") else (text.get(name),) for name in _TEXT]
            rows.append((model.get("name"), model.get("role"), *(cell for pair in cells for cell in pair)))
    return names.TEXT_TABLE, ("model", "role", *_flat(_TEXT)), tuple(rows)


def _tasks(models: Sequence[Mapping[str, Any]]) -> NamedTable:
    columns = (
        "model", "role", "task", "shots", "metric", "is_main", "value", "stderr", "low", "high", "better", "chance",
        "documents", "version",
    )  # fmt: skip
    rows = []
    for model in models:
        for task in items(model.get("tasks")):
            for name, metric in mapping(task.get("metrics")).items():
                found = mapping(metric)
                rows.append((
                    model.get("name"), model.get("role"), task.get("task"), task.get("shots"), name,
                    name == task.get("main"), found.get("value"), found.get("stderr"),
                    *interval_of(found.get("interval")), found.get("better"),
                    task.get("chance"), task.get("documents"), _text(task.get("version")),
                ))  # fmt: skip
    return names.TASKS_TABLE, columns, tuple(rows)


def _differences(found: list[Mapping[str, Any]], short: Mapping[str, str]) -> NamedTable:
    def cell(row: Mapping[str, Any], column: str) -> Any:
        value = row.get(column)
        return short.get(str(value), value) if column in ("model", "to") else value

    rows = tuple(tuple(cell(row, column) for column in _DIFFERENCE) for row in found)
    return names.DIFFERENCES_TABLE, _DIFFERENCE, rows


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _generation(models: Sequence[Mapping[str, Any]]) -> NamedTable:
    rows = []
    for model in models:
        generation = mapping(model.get("generation"))
        for name, metric in mapping(generation.get("metrics")).items():
            found = mapping(metric)
            low, high = interval_of(found.get("interval"))
            rows.append((model.get("name"), model.get("role"), name, found.get("value"), low, high, found.get("better"),
                         generation.get("prompts")))  # fmt: skip
    columns = ("model", "role", "metric", "value", "low", "high", "better", "prompts")
    return names.GENERATION_TABLE, columns, tuple(rows)


def _samples(models: Sequence[Mapping[str, Any]]) -> NamedTable:
    rows = tuple(
        (model.get("name"), sample.get("prompt"), sample.get("text"), sample.get("reference"))
        for model in models
        for sample in items(mapping(model.get("generation")).get("samples"))
    )
    return names.SAMPLES_TABLE, ("model", "prompt", "text", "reference"), rows


def _efficiency(models: Sequence[Mapping[str, Any]]) -> NamedTable:
    rows = []
    for model in models:
        found = mapping(model.get("efficiency"))
        if found:
            energy = mapping(found.get("energy")).get("joules_per_token")
            rows.append((model.get("name"), model.get("role"), *(found.get(name) for name in _EFFICIENCY), energy))
    return names.EFFICIENCY_TABLE, ("model", "role", *_EFFICIENCY, "joules_per_token"), tuple(rows)


def _speed(models: Sequence[Mapping[str, Any]]) -> NamedTable:
    rows = []
    for model in models:
        found = mapping(model.get("efficiency"))
        for phase, length in (("prefill", "prompt_tokens"), ("decode", "context_tokens")):
            for at in items(found.get(phase)):
                latency = mapping(at.get("latency_ms"))
                rows.append((model.get("name"), model.get("role"), phase, at.get(length), at.get("batch"),
                             at.get("tokens_per_second"), *(latency.get(name) for name in _LATENCY)))  # fmt: skip
    columns = ("model", "role", "phase", "tokens", "batch", "tokens_per_second", *(f"{name}_ms" for name in _LATENCY))
    return names.SPEED_TABLE, columns, tuple(rows)


def evaluation_figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """The first model's figures, one each; the mean over tasks is of their main metrics where more is better."""
    models = items(result.get("models"))
    if not models:
        return {}
    first = models[0]
    text: Mapping[str, Any] = next(iter(items(first.get("text"))), {})
    figures = {
        names.RESULT_PARAMS: number(first.get("params")), names.RESULT_LOSS: number(text.get("loss")),
        names.RESULT_PERPLEXITY: number(text.get("perplexity")), names.RESULT_BITS: number(text.get("bits_per_byte")),
        names.RESULT_SECONDS: number(mapping(result.get("spent")).get("seconds")),
    }  # fmt: skip
    scores = []
    for task in items(first.get("tasks")):
        metric = main_metric(task)
        value = number(metric.get("value"))
        if value is not None:
            figures[f"{names.RESULT_TASK}{task.get('task')}"] = value
            if metric.get("better") == "more" and not task.get("group"):
                scores.append(value)
    figures[names.RESULT_TASKS] = sum(scores) / len(scores) if scores else None
    efficiency = mapping(first.get("efficiency"))
    for name, phase in ((names.RESULT_PREFILL, "prefill"), (names.RESULT_DECODE, "decode")):
        rates = [number(at.get("tokens_per_second")) for at in items(efficiency.get(phase))]
        figures[name] = max((rate for rate in rates if rate is not None), default=None)
    return figures
