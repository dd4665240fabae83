"""What a finished run found, sent to a tracker: tables of figures, the picture, and a few figures for the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.units import perplexity_of_loss
from slm_ray.records import metric_names as names
from slm_ray.records.base import Part
from slm_ray.records.evaluation import EvaluationResult, ModelFigures
from slm_ray.records.measurement import EfficiencyFigures
from slm_ray.records.run import RunRecord
from slm_ray.report.evaluation import EVALUATION_PICTURE, EvaluationRun, load_evaluation
from slm_ray.report.kinds import PIPELINE, kind_of
from slm_ray.report.matching import equal_flops, match
from slm_ray.report.search import FRONT_PICTURE, SearchRun, cost_table, front_rows, load_search, phases
from slm_ray.report.training import TrainingRun, load_training
from slm_ray.report.training_report import TRAINING_PICTURE
from slm_ray.runtime.trackers import NoTracker, Tracker

Row = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """A table of figures, which a tracker's reader may sort and plot; its cells are numbers, texts and None."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]


def _figures(name: str, rows: Sequence[Row]) -> Figures:
    """A table of rows that have the same columns."""
    return Figures(name, tuple(rows[0]) if rows else (), [tuple(row.values()) for row in rows])


@dataclass(frozen=True)
class Results:
    """All that is sent of one run: tables, pictures by name, and one figure each for its summary."""

    tables: Sequence[Figures]
    pictures: Mapping[str, Path]
    summary: Mapping[str, Any]


def send_results(tracker: Tracker, folder: Path) -> None:
    """Send the tables, the picture and the summary of a run's folder."""
    if type(tracker) is NoTracker:
        return
    for results in results_of(folder):
        for table in results.tables:
            if table.rows:
                tracker.table(table.name, table.columns, table.rows)
        for name, path in results.pictures.items():
            if path.is_file():
                tracker.image(name, path)
        summary = {name: value for name, value in results.summary.items() if value is not None}
        if summary:
            tracker.summary(summary)


def results_of(folder: Path) -> Iterator[Results]:
    """What is sent of a folder; a pipeline gives its stages' results one after the other."""
    kind = kind_of(folder)
    if kind == PIPELINE:
        for stage in ("search", "pretrain", "evaluate"):
            if (folder / stage / RunRecord.FILE).is_file() or (folder / stage / EvaluationResult.FILE).is_file():
                yield from results_of(folder / stage)
    elif kind == "evaluate":
        yield _evaluation(load_evaluation(folder), folder)
    elif kind == "pretrain":
        yield _training(load_training(folder))
    elif kind == "search":
        yield _search(load_search(folder))


def _search(run: SearchRun) -> Results:
    best, spent = run.best, run.result.spent if run.result else None
    compared: list[Row] = [
        {"model": m.name, "params": m.params, "held_out_perplexity": m.held_out_perplexity,
         "held_out_stderr": m.held_out_stderr}
        for m in (run.teacher, best, *run.baselines) if m is not None
    ]  # fmt: skip
    progress = run.result.hypervolume if run.result else ()
    costs = cost_table(run)
    tables = [
        _figures(names.FRONT_TABLE, front_rows(run)), _figures(names.BASELINE_TABLE, compared),
        _figures(names.HYPERVOLUME_TABLE, [
            {"evaluations": p.evaluations, "seconds": p.seconds, "hypervolume": p.value} for p in progress
        ]),
        Figures(names.COST_TABLE, costs.header, costs.rows),
    ]  # fmt: skip
    return Results(tables, {names.FRONT_PICTURE: run.folder / FRONT_PICTURE}, {
        names.RESULT_PARAMS: best.params if best else None, names.RESULT_PERPLEXITY: best.perplexity if best else None,
        names.RESULT_TOKENS: spent and spent.forward_tokens, names.RESULT_FLOPS: spent and spent.flops,
        names.RESULT_SECONDS: sum(seconds for _, seconds in phases(run)) or None,
    })  # fmt: skip


def _training(run: TrainingRun) -> Results:
    last = run.best.last if run.best else None
    summary = {
        names.RESULT_PARAMS: run.best.params if run.best else None, names.RESULT_LOSS: last and last.loss,
        names.RESULT_PERPLEXITY: perplexity_of_loss(last.loss) if last else None,
        names.RESULT_BITS: last and last.bits_per_byte, names.RESULT_TOKENS: last and last.tokens,
        names.RESULT_FLOPS: last and last.flops.own + last.flops.teacher, names.RESULT_SECONDS: last and last.seconds,
    }  # fmt: skip
    tables = [_models(run), _matching(run), _equal_flops(run), _curves(run)]
    return Results(tables, {names.TRAINING_PICTURE: run.folder / TRAINING_PICTURE}, summary)


def _models(run: TrainingRun) -> Figures:
    rows = []
    for model in run.models:
        first, last = model.first, model.last
        rows.append({
            "model": model.name, "start": model.start, "state": model.state, "params": model.params,
            "tokens": last and last.tokens, "first_loss": first and first.loss, "last_loss": last and last.loss,
            "last_stderr": last and last.stderr, "bits_per_byte": last and last.bits_per_byte,
            "own_flops": last and last.flops.own, "teacher_flops": last and last.flops.teacher,
            "search_flops": model.search_flops, "capture_flops": model.capture_flops, "seconds": last and last.seconds,
            "tokens_per_second": model.tokens_per_second, "memory_bytes": model.memory_bytes, "mfu": model.mfu,
            "joules": model.joules,
        })  # fmt: skip
    return _figures(names.MODELS_TABLE, rows)


def _matching(run: TrainingRun) -> Figures:
    curves = run.curves if len(run.curves) > 1 else []
    rows = []
    for reference in curves:
        for curve in curves:
            found = match(curve, reference)
            rows.append({
                "last_loss_of": reference.name, "loss": reference.final_loss, "model": curve.name,
                "tokens": found.tokens, "flops": found.flops, "times_fewer_tokens": found.ratio_tokens,
                "times_fewer_flops": found.ratio_flops,
            })  # fmt: skip
    return _figures(names.MATCHING_TABLE, rows)


def _equal_flops(run: TrainingRun) -> Figures:
    budget, found = equal_flops(run.curves) if len(run.curves) > 1 else (0.0, {})
    return _figures(names.EQUAL_FLOPS_TABLE, [
        {"model": name, "flops_at_most": budget, "loss": point and point.loss, "tokens": point and point.tokens}
        for name, point in found.items()
    ])  # fmt: skip


def _curves(run: TrainingRun) -> Figures:
    return _figures(names.CURVES_TABLE, [
        {
            "model": model.name, "tokens": at.tokens, "flops": at.flops.own + at.flops.teacher, "loss": at.loss,
            "stderr": at.stderr, "bits_per_byte": at.bits_per_byte,
        }
        for model in run.models
        for at in model.evaluations
    ])  # fmt: skip


def _cells(part: Part, *left_out: str) -> Row:
    """A record's fields by name, an interval as its two ends; records inside it are left out."""
    found: Row = {}
    for field in type(part).model_fields:
        value = getattr(part, field)
        if field.endswith("interval"):
            start = field.removesuffix("interval")
            found[f"{start}low"], found[f"{start}high"] = value or (None, None)
        elif field not in left_out and not isinstance(value, Part | tuple | dict):
            found[field] = value
    return found


def _evaluation(run: EvaluationRun, folder: Path) -> Results:
    named: list[tuple[Row, ModelFigures]] = [({"model": run.called(m.name), "role": m.role}, m) for m in run.models]
    written = [(name, model.generation) for name, model in named if model.generation]
    measured = [(name, model.efficiency) for name, model in named if model.efficiency]
    tables = [
        _figures(names.TEXT_TABLE, [name | _cells(text, "units", "unit", "stride", "sequence_length")
                                    for name, model in named for text in model.text]),
        _figures(names.TASKS_TABLE, [
            name | {"task": task.task, "shots": task.shots, "metric": metric, "is_main": metric == task.main}
            | _cells(figure) | {"chance": task.chance, "documents": task.documents, "version": task.version}
            for name, model in named for task in model.tasks for metric, figure in task.metrics.items()
        ]),
        _figures(names.DIFFERENCES_TABLE, [
            _cells(found, "stderr") | {"model": run.called(found.model), "to": run.called(found.to)}
            for found in run.result.differences
        ]),
        _figures(names.GENERATION_TABLE, [
            name | {"metric": metric} | _cells(figure, "stderr") | {"prompts": found.prompts}
            for name, found in written for metric, figure in found.metrics.items()
        ]),
        _figures(names.SAMPLES_TABLE, [
            {"model": name["model"], "prompt": one.prompt, "text": one.text, "reference": one.reference}
            for name, found in written for one in found.samples
        ]),
        _figures(names.EFFICIENCY_TABLE, [
            name | _cells(found, "flops_sequence_length") | {"joules_per_token": found.energy.joules_per_token}
            for name, found in measured
        ]),
        _figures(names.SPEED_TABLE, [
            name | {"phase": phase, "tokens": at.tokens, "batch": at.batch, "tokens_per_second": at.tokens_per_second}
            | {f"{key}_ms": value for key, value in _cells(at.latency_ms).items()}
            for name, found in measured for phase in ("prefill", "decode") for at in getattr(found, phase)
        ]),
    ]  # fmt: skip
    summary = _first_model(run.models[0], run.result) if run.models else {}
    return Results(tables, {names.EVALUATION_PICTURE: folder / EVALUATION_PICTURE}, summary)


def _first_model(model: ModelFigures, result: EvaluationResult) -> dict[str, Any]:
    """The first model's figures, one each; the mean over tasks is of their main metrics where more is better."""
    text, efficiency = next(iter(model.text), None), model.efficiency
    main = [(task, task.metrics[task.main]) for task in model.tasks if task.main in task.metrics]
    scores = [f.value for task, f in main if f.value is not None and f.better == "more" and task.members is None]
    return {
        names.RESULT_PARAMS: model.params, names.RESULT_LOSS: text and text.loss,
        names.RESULT_PERPLEXITY: text and text.perplexity, names.RESULT_BITS: text and text.bits_per_byte,
        names.RESULT_SECONDS: result.spent and result.spent.seconds,
        **{f"{names.RESULT_TASK}{task.task}": figure.value for task, figure in main},
        names.RESULT_TASKS: sum(scores) / len(scores) if scores else None,
        names.RESULT_PREFILL: _fastest(efficiency, "prefill"), names.RESULT_DECODE: _fastest(efficiency, "decode"),
    }  # fmt: skip


def _fastest(found: EfficiencyFigures | None, phase: str) -> float | None:
    return max((at.tokens_per_second for at in getattr(found, phase)), default=None) if found else None
