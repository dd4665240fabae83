"""The tables of an evaluation in a model card: one model beside its teacher and its other peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.units import format_bytes, format_count
from slm_ray.report.evaluation_names import names_of
from slm_ray.report.public_name import public_name
from slm_ray.report.records import interval_of, items, mapping, number
from slm_ray.report.tables import Table
from slm_ray.report.tracked_evaluation import main_metric
from slm_ray.report.wording import MISSING, count_text, perplexity_text

Row = Mapping[str, Any]
Named = tuple[str, Row]  # a model and what it is called
_ROLES = {"teacher": "{} (teacher)", "random": "random twin", "first-n": "teacher's first layers",
          "published": "{} (published)"}  # fmt: skip
THIS = "this model"


def rows_beside(result: Row, row: Row) -> list[Row]:
    """The models that one was held against: its peers, and whatever a difference to or from it names."""
    name = row.get("name")
    named = {name}
    for found in items(result.get("differences")):
        if name in (found.get("model"), found.get("to")):
            named |= {found.get("model"), found.get("to")}
    return [
        model for model in items(result.get("models"))
        if model is not row and not model.get("error") and (model.get("of") == name or model.get("name") in named)
    ]  # fmt: skip


def _labels(result: Row, row: Row, beside: Sequence[Row]) -> dict[str, str]:
    """What every model is called: by its role where that says it all, never by a path."""
    short = names_of(items(result.get("models")))
    labels = {}
    for model in beside:
        name = str(model.get("name"))
        labels[name] = _ROLES.get(str(model.get("role")), "{}").format(public_name(short.get(name, name)))
    repeated = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    labels = {name: f"{label} of {public_name(short.get(name, name))}" if label in repeated else label
              for name, label in labels.items()}  # fmt: skip
    return labels | {str(row.get("name")): THIS}


def card_tables(result: Row, row: Row, beside: Sequence[Row]) -> Iterator[Table]:
    """The tables, those without rows included.

    Args:
        result: What ``evaluate.json`` says.
        row: The model's own part of it.
        beside: Those of the models it is shown beside.
    """
    labels = _labels(result, row, beside)
    models = [(labels[str(model.get("name"))], model) for model in (row, *beside)]
    yield _texts(models)
    yield _tasks(models)
    yield _differences(result, str(row.get("name")), labels)
    yield _generation(models)
    yield _efficiency(models)
    yield _sources(row)


def _between(value: Any, digits: int) -> str:
    low, high = interval_of(value)
    return MISSING if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _perplexities(value: Any) -> str:
    low, high = interval_of(value)
    return MISSING if low is None or high is None else f"{perplexity_text(low)} to {perplexity_text(high)}"


def _texts(models: Sequence[Named]) -> Table:
    header = ("text", "model", "parameters", "perplexity", "95% interval", "bits per byte", "95% interval of it")
    rows = [
        (
            public_name(text.get("domain")), label, count_text(number(model.get("params"))),
            perplexity_text(number(text.get("perplexity"))), _perplexities(text.get("perplexity_interval")),
            _figure(text.get("bits_per_byte"), 4), _between(text.get("bits_per_byte_interval"), 4),
        )
        for domain in [text.get("domain") for text in items(models[0][1].get("text"))]
        for label, model in models
        for text in items(model.get("text")) if text.get("domain") == domain
    ]  # fmt: skip
    return Table("On held-out text", header, tuple(rows))


def _figure(value: Any, digits: int) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:.{digits}f}"


def _score(metric: Row) -> str:
    low, high = interval_of(metric.get("interval"))
    around = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return _figure(metric.get("value"), 3) + around


def _tasks(models: Sequence[Named]) -> Table:
    """A column per model: tasks are read across."""
    header = ("task", "shots", "documents", "metric", "chance", *(label for label, _ in models))
    found_of = [{task.get("task"): task for task in items(model.get("tasks"))} for _, model in models]
    scores = [{name: _score(main_metric(task)) for name, task in found.items()} for found in found_of]
    rows = [
        (
            str(task.get("title") or task.get("task")), _plain(task.get("shots")), _plain(task.get("documents")),
            _plain(task.get("main")), _figure(task.get("chance"), 3),
            *(found.get(task.get("task"), MISSING) for found in scores),
        )
        for task in items(models[0][1].get("tasks"))
    ]  # fmt: skip
    return Table("Tasks", header, tuple(rows))


def _plain(value: Any) -> str:
    return MISSING if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _differences(result: Row, name: str, labels: Mapping[str, str]) -> Table:
    rows = []
    for found in items(result.get("differences")):
        if name not in (found.get("model"), found.get("to")):
            continue
        sides = [labels.get(str(found.get(side)), public_name(found.get(side))) for side in ("model", "to")]
        low, high = number(found.get("low")), number(found.get("high"))
        between = MISSING if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
        value = number(found.get("difference"))
        rows.append((
            f"{public_name(found.get('of'))}, {found.get('quantity')}", sides[0], sides[1],
            MISSING if value is None else f"{value:+.4f}", between, str(found.get("verdict") or MISSING),
        ))  # fmt: skip
    header = ("what", "of", "minus that of", "difference", "95% interval", "verdict")
    return Table("Differences, on the same documents where they are paired", header, tuple(rows))


def _generation(models: Sequence[Named]) -> Table:
    """A column per model."""
    found = [mapping(mapping(model.get("generation")).get("metrics")) for _, model in models]
    rows = [
        (str(name), *(_score(mapping(metrics.get(name))) if name in metrics else MISSING for metrics in found))
        for name in found[0]
    ]
    return Table("Generation", ("metric", *(label for label, _ in models)), tuple(rows))


def _efficiency(models: Sequence[Named]) -> Table:
    header = (
        "model", "prefill, tokens/s", "decode, tokens/s", "peak memory", "KV bytes a token", "FLOPs a token", "device",
    )  # fmt: skip
    rows = []
    for label, model in models:
        found = mapping(model.get("efficiency"))
        if not found:
            continue
        peak, kv, flops = (number(found.get(name)) for name in
                           ("peak_memory_bytes", "kv_bytes_per_token", "flops_per_token"))  # fmt: skip
        rows.append((
            label, _rate(found.get("prefill")), _rate(found.get("decode")),
            MISSING if peak is None else format_bytes(peak), MISSING if kv is None else format_bytes(kv),
            MISSING if flops is None else format_count(flops),
            str(found.get("device_name") or found.get("device") or MISSING),
        ))  # fmt: skip
    return Table("Efficiency", header, tuple(rows))


def _rate(measured: Any) -> str:
    """The fastest setting, and which one it was."""
    rates = [(rate, at) for at in items(measured) if (rate := number(at.get("tokens_per_second"))) is not None]
    if not rates:
        return MISSING
    rate, at = max(rates, key=lambda pair: pair[0])
    return f"{rate:,.0f} (batch {at.get('batch')}, {at.get('prompt_tokens') or at.get('context_tokens')} tokens)"


def _source(value: Any) -> str:
    """Where a task's documents come from, without this machine's folders."""
    kind, separator, place = str(value or MISSING).partition(": ")
    return f"{kind}: {Path(place).name}" if separator and kind == "local" else str(value or MISSING)


def _sources(this: Row) -> Table:
    """Digests of all that was read, so that the figures can be made again on the same data."""
    rows = [("this model's files", str(this.get("digest")), MISSING)]
    rows += [
        (f"text {public_name(text.get('domain'))}", f"corpus {text.get('corpus_digest') or MISSING}",
         f"tokens {text.get('tokens_digest')}, {_plain(text.get('tokens'))} of them")
        for text in items(this.get("text"))
    ]  # fmt: skip
    rows += [
        (f"task {task.get('task')}", f"version {task.get('version')}", _source(task.get("source")))
        for task in items(this.get("tasks")) if not task.get("group")
    ]  # fmt: skip
    return Table("What was read", ("what", "which", "of it"), tuple(rows))
