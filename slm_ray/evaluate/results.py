"""The results of an evaluation: figures with their intervals, and differences, from the records of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm_ray.config.units import perplexity_of_loss
from slm_ray.evaluate.compare import mean_interval, normal_interval, ratio_interval, ratio_stderr
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.evaluate.differences import differences
from slm_ray.evaluate.inputs import Inputs
from slm_ray.evaluate.parts import EFFICIENCY, GENERATION, TASK, TEXT, Part
from slm_ray.evaluate.subjects import Subject
from slm_ray.report.evaluation_records import FORMAT

_SAMPLES_SHOWN = 8
Records = Mapping[str, Mapping[str, dict[str, Any]]]  # label to key of a part to its record
Interval = tuple[float, float] | None


def make_result(
    config: EvaluateConfig, inputs: Inputs, records: Records, failures: Mapping[str, str], *,
    command: str, environment: Mapping[str, Any], spent: Mapping[str, Any], files: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """What ``evaluate.json`` says.

    Args:
        config: The options.
        inputs: What was to be measured.
        records: What was.
        failures: Label to what is wrong with the models that could not be measured, in all or in part.
        command: The command line.
        environment: What it ran on.
        spent: What it cost.
        files: Label to the folder of its records, relative to the evaluation's.
    """
    rows, kept = [], {}
    for subject in inputs.subjects:
        found = [(part, records[subject.label].get(part.key)) for part in inputs.parts[subject.label]]
        measured = [(part, record) for part, record in found if record is not None]
        rows.append(_row(inputs, subject, measured, failures.get(subject.label), files[subject.label]))
        kept[subject.label] = measured
    return {
        "format": FORMAT, "command": command, "config": config.to_json(), "environment": dict(environment),
        "precision": inputs.precision, "device": inputs.device, "spent": dict(spent),
        "suites": {} if inputs.plan is None else {name: list(tasks) for name, tasks in inputs.plan.suites.items()},
        "notes": inputs.notes, "models": rows,
        "differences": [found.to_json() for found in differences(inputs, kept, rows)],
    }  # fmt: skip


def _row(
    inputs: Inputs, subject: Subject, measured: Sequence[tuple[Part, dict[str, Any]]], error: str | None, folder: str
) -> dict[str, Any]:
    by_kind: dict[str, list[tuple[Part, dict[str, Any]]]] = {}
    for part, record in measured:
        by_kind.setdefault(part.kind, []).append((part, record))
    return {
        "name": subject.label, "role": subject.role, "of": subject.of, "folder": str(subject.model.folder),
        "digest": subject.model.digest, "params": next((record["params"] for _, record in measured), subject.params),
        "tokenizer": inputs.tokenizers.get(subject.label), "error": error, "records": folder,
        "lineage": dict(subject.lineage) or None,
        "text": [text_row(part, record) for part, record in by_kind.get(TEXT, [])],
        "tasks": _task_rows(inputs, [record for _, record in by_kind.get(TASK, [])]),
        "generation": next((_generation_row(record) for _, record in by_kind.get(GENERATION, [])), None),
        "efficiency": next((_plain(record) for _, record in by_kind.get(EFFICIENCY, [])), None),
    }  # fmt: skip


def _scaled(interval: Interval, factor: float) -> Interval:
    return None if interval is None else (interval[0] * factor, interval[1] * factor)


def text_row(part: Part, record: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one domain from its sums; a perplexity that is no float is null."""
    losses, counts = np.array(record["losses"], float), np.array(record["counts"], float)
    loss = float(losses.sum() / counts.sum())
    stderr, interval = ratio_stderr(losses, counts), ratio_interval(losses, counts)
    perplexity, bits = perplexity_of_loss(loss), record["bits_per_byte"]
    scale = bits / loss if loss else 0.0
    bits_stderr, bits_interval = (None if stderr is None else stderr * scale), _scaled(interval, scale)
    if record["unit_bytes"] is not None:  # whole documents: a long one with few bytes per token counts as it is
        sizes = np.array(record["unit_bytes"], float)
        spent = losses * (bits * record["bytes"] / losses.sum())
        bits_stderr, bits_interval = ratio_stderr(spent, sizes), ratio_interval(spent, sizes)
    around = None if interval is None else tuple(map(perplexity_of_loss, interval))
    settings = part.settings
    return {
        "domain": part.name, "corpus": record["corpus"], "corpus_digest": record["corpus_digest"],
        "loss": loss, "loss_stderr": stderr, "loss_interval": interval, "perplexity": perplexity,
        "perplexity_stderr": None if perplexity is None or stderr is None else perplexity * stderr,
        "perplexity_interval": None if around is None or None in around else around,
        "bits_per_byte": bits, "bits_per_byte_stderr": bits_stderr, "bits_per_byte_interval": bits_interval,
        "tokens": int(counts.sum()), "bytes": record["bytes"], "units": len(counts), "unit": record["unit"],
        "tokens_digest": record["tokens_digest"], "window": settings["window"], "stride": settings.get("stride"),
        "sequence_length": settings.get("length") or record.get("sequence_length"),
        "documents": settings.get("documents"), "seconds": record["seconds"],
    }  # fmt: skip


def _task_rows(inputs: Inputs, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tasks of a model, and behind them the groups whose tasks are all measured."""
    if inputs.plan is None:
        return []
    from slm_ray.evaluate.tasks.groups import group_rows

    by_task = {str(record["task"]): record for record in records}
    rows = [_task_row(record) | {"group": False, "members": None} for record in records]
    groups = group_rows(inputs.plan, by_task)
    return rows + [_task_row(row) | {"group": True, "members": row["members"]} for row in groups]


def _task_row(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("task", "title", "version", "shots", "limit", "documents", "main", "chance", "source", "seconds")
    samples = record.get("samples") or {}
    metrics = {}
    for name, figure in record["metrics"].items():
        values = np.array(samples.get(name) or [], float)
        known = figure["value"] is not None
        around = normal_interval(figure["value"], figure.get("stderr")) if known else None
        metrics[name] = {**figure, "interval": mean_interval(values) if len(values) else around}
    return {**{name: record.get(name) for name in names}, "metrics": metrics}


def _generation_row(record: Mapping[str, Any]) -> dict[str, Any]:
    left = ("values", "statistics")  # they stay in the part's own record
    metrics = {
        name: {key: value for key, value in figure.items() if key not in left}
        for name, figure in record["metrics"].items()
    }
    return {
        "prompts": record["prompts"], "settings": record["settings"], "metrics": metrics,
        "samples": record["samples"][:_SAMPLES_SHOWN], "notes": record["notes"], "seconds": record["seconds"],
    }  # fmt: skip


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("key", "settings_digested", "kind", "name")}
