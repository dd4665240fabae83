"""What a finished run found, sent to a tracker: tables of figures, the picture, and a few figures for the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.units import perplexity_of_loss
from slm_ray.records import metric_names as names
from slm_ray.records.base import Part
from slm_ray.records.evaluation import Difference, EvaluationResult, ModelFigures
from slm_ray.records.measurement import EfficiencyFigures, Figure, Latency, TextFigures
from slm_ray.records.run import RunRecord
from slm_ray.report.evaluation import EVALUATION_PICTURE, EvaluationRun, load_evaluation
from slm_ray.report.kinds import PIPELINE, kind_of
from slm_ray.report.matching import equal_flops, match
from slm_ray.report.search import FRONT_PICTURE, SearchRun, cost_table, load_search, phases
from slm_ray.report.training import TrainingRun, load_training
from slm_ray.report.training_report import TRAINING_PICTURE
from slm_ray.runtime.trackers import NoTracker, Tracker

_TEXT_LEFT_OUT = {"units", "unit", "stride", "sequence_length"}
_EFFICIENCY = (
    "params", "weights_bytes", "flops_per_token", "kv_bytes_per_token", "peak_memory_bytes", "threads", "device",
    "device_name", "precision",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """A table of figures, which a tracker's reader may sort and plot; its cells are numbers, texts and None."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]


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
    costs = cost_table(run)
    front = [
        (
            m.trial, m.winner, m.params, m.cost.flops, m.cost.kv_bytes, m.calibration_perplexity, m.held_out_perplexity,
            m.held_out_stderr, m.perplexity / reference if m.perplexity and (reference := run.reference(m)) else None,
            m.architecture.num_layers, m.architecture.hidden_size,
        )
        for m in run.front
    ]  # fmt: skip
    columns = (
        "trial", "winner", "params", "flops_per_token", "kv_bytes_per_token", "calibration_perplexity",
        "held_out_perplexity", "held_out_stderr", "times_teacher", "layers", "hidden_size",
    )  # fmt: skip
    compared = [(m.name, m.params, m.held_out_perplexity, m.held_out_stderr)
                for m in (run.teacher, best, *run.baselines) if m is not None]  # fmt: skip
    progress = [(p.evaluations, p.seconds, p.value) for p in (run.result.hypervolume if run.result else ())]
    tables = [
        Figures(names.FRONT_TABLE, columns, tuple(front)),
        Figures(names.BASELINE_TABLE, ("model", "params", "held_out_perplexity", "held_out_stderr"), tuple(compared)),
        Figures(names.HYPERVOLUME_TABLE, ("evaluations", "seconds", "hypervolume"), tuple(progress)),
        Figures(names.COST_TABLE, costs.header, costs.rows),
    ]
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
    columns = (
        "model", "start", "state", "params", "tokens", "first_loss", "last_loss", "last_stderr", "bits_per_byte",
        "own_flops", "teacher_flops", "search_flops", "capture_flops", "seconds", "tokens_per_second", "memory_bytes",
        "mfu", "joules",
    )  # fmt: skip
    rows = []
    for model in run.models:
        first, last = model.first, model.last
        rows.append((
            model.name, model.start, model.state, model.params, last and last.tokens, first and first.loss,
            last and last.loss, last and last.stderr, last and last.bits_per_byte, last and last.flops.own,
            last and last.flops.teacher, model.search_flops, model.capture_flops, last and last.seconds,
            model.tokens_per_second, model.memory_bytes, model.mfu, model.joules,
        ))  # fmt: skip
    return Figures(names.MODELS_TABLE, columns, tuple(rows))


def _matching(run: TrainingRun) -> Figures:
    columns = ("last_loss_of", "loss", "model", "tokens", "flops", "times_fewer_tokens", "times_fewer_flops")
    curves = run.curves if len(run.curves) > 1 else []
    rows = []
    for reference in curves:
        for curve in curves:
            found = match(curve, reference)
            rows.append((reference.name, reference.final_loss, curve.name, found.tokens, found.flops,
                         found.ratio_tokens, found.ratio_flops))  # fmt: skip
    return Figures(names.MATCHING_TABLE, columns, tuple(rows))


def _equal_flops(run: TrainingRun) -> Figures:
    columns = ("model", "flops_at_most", "loss", "tokens")
    if len(run.curves) < 2:
        return Figures(names.EQUAL_FLOPS_TABLE, columns, ())
    budget, found = equal_flops(run.curves)
    rows = tuple((name, budget, point and point.loss, point and point.tokens) for name, point in found.items())
    return Figures(names.EQUAL_FLOPS_TABLE, columns, rows)


def _curves(run: TrainingRun) -> Figures:
    rows = tuple(
        (model.name, at.tokens, at.flops.own + at.flops.teacher, at.loss, at.stderr, at.bits_per_byte)
        for model in run.models
        for at in model.evaluations
    )
    return Figures(names.CURVES_TABLE, ("model", "tokens", "flops", "loss", "stderr", "bits_per_byte"), rows)


def _columns(fields: Sequence[str]) -> list[str]:
    """Fields as columns, an interval as two."""
    found: list[str] = []
    for field in fields:
        ends = [field.replace("_interval", end) for end in ("_low", "_high")]
        found += ends if field.endswith("_interval") else [field]
    return found


def _cells(part: Part, fields: Sequence[str]) -> list[Any]:
    found: list[Any] = []
    for field in fields:
        value = getattr(part, field)
        found += (value or (None, None)) if field.endswith("_interval") else [value]
    return found


def _ends(figure: Figure) -> tuple[float | None, float | None]:
    return figure.interval or (None, None)


def _evaluation(run: EvaluationRun, folder: Path) -> Results:
    models = [(run.called(model.name), model.role, model) for model in run.models]
    fields = [field for field in TextFigures.model_fields if field not in _TEXT_LEFT_OUT]
    texts = [(name, role, *_cells(text, fields)) for name, role, model in models for text in model.text]
    tasks = [
        (name, role, task.task, task.shots, metric, metric == task.main, figure.value, figure.stderr, *_ends(figure),
         figure.better, task.chance, task.documents, task.version)
        for name, role, model in models for task in model.tasks for metric, figure in task.metrics.items()
    ]  # fmt: skip
    compared = [field for field in Difference.model_fields if field != "stderr"]
    differences = [
        tuple(run.called(value) if field in ("model", "to") else value
              for field, value in zip(compared, _cells(d, compared), strict=True))
        for d in run.result.differences
    ]  # fmt: skip
    written = [(name, role, model.generation) for name, role, model in models if model.generation]
    generation = [
        (name, role, metric, figure.value, *_ends(figure), figure.better, found.prompts)
        for name, role, found in written for metric, figure in found.metrics.items()
    ]  # fmt: skip
    samples = [(name, one.prompt, one.text, one.reference) for name, _, found in written for one in found.samples]
    measured = [(name, role, model.efficiency) for name, role, model in models if model.efficiency]
    efficiency = [
        (name, role, *_cells(found, _EFFICIENCY), found.energy.joules_per_token) for name, role, found in measured
    ]
    speed = [
        (name, role, phase, at.tokens, at.batch, at.tokens_per_second,
         *_cells(at.latency_ms, list(Latency.model_fields)))
        for name, role, found in measured
        for phase in ("prefill", "decode")
        for at in getattr(found, phase)
    ]  # fmt: skip
    tables = [
        Figures(names.TEXT_TABLE, ("model", "role", *_columns(fields)), tuple(texts)),
        Figures(names.TASKS_TABLE, ("model", "role", "task", "shots", "metric", "is_main", "value", "stderr", "low",
                                    "high", "better", "chance", "documents", "version"), tuple(tasks)),
        Figures(names.DIFFERENCES_TABLE, tuple(compared), tuple(differences)),
        Figures(names.GENERATION_TABLE, ("model", "role", "metric", "value", "low", "high", "better", "prompts"),
                tuple(generation)),
        Figures(names.SAMPLES_TABLE, ("model", "prompt", "text", "reference"), tuple(samples)),
        Figures(names.EFFICIENCY_TABLE, ("model", "role", *_EFFICIENCY, "joules_per_token"), tuple(efficiency)),
        Figures(names.SPEED_TABLE, ("model", "role", "phase", "tokens", "batch", "tokens_per_second",
                                    *(f"{name}_ms" for name in Latency.model_fields)), tuple(speed)),
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
