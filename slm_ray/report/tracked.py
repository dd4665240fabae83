"""What a finished run found, sent to a tracker: tables of figures, the picture, and a few figures for the summary.

Made from the run's records alone, like every other report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.units import perplexity_of_loss
from slm_ray.records import metric_names as names
from slm_ray.records.files import read_json
from slm_ray.report.evaluation_records import RESULT_FILE as EVALUATION_FILE
from slm_ray.report.matching import equal_flops, match
from slm_ray.report.model import Model, RunRecords
from slm_ray.report.pipeline import STATE_FILE
from slm_ray.report.records import load_run, mapping, number, read_part
from slm_ray.report.tables import cost_table, phases, teacher_perplexity
from slm_ray.report.tracked_evaluation import evaluation_figures, evaluation_tables
from slm_ray.report.training import TrainedModel, TrainingRecords, is_training_run, load_training
from slm_ray.runtime.runfolder import CONFIG_FILE
from slm_ray.runtime.trackers import NoTracker, Tracker

FRONT_FILE, TRAINING_FILE, EVALUATION_PICTURE_FILE = "front.png", "training.png", "evaluation.png"


@dataclass(frozen=True)
class Figures:
    """A table of figures, which a tracker's reader may sort and plot.

    Attributes:
        name: Under which it is tracked.
        columns: Their names.
        rows: Numbers, texts and None.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Results:
    """All that is sent of one run.

    Attributes:
        tables: Those that have rows.
        pictures: Name to file, as far as it is there.
        summary: One figure each.
    """

    tables: tuple[Figures, ...]
    pictures: Mapping[str, Path]
    summary: Mapping[str, Any]


def send_results(tracker: Tracker, folder: Path) -> None:
    """Send the tables, the picture and the summary of a run's folder.

    Args:
        tracker: Where they go; the caller finishes it.
        folder: Of a search, a pretraining, an evaluation or a pipeline.

    Raises:
        UserError: The folder holds no run.
    """
    if type(tracker) is NoTracker:
        return
    for results in results_of(folder):
        for table in results.tables:
            tracker.table(table.name, table.columns, table.rows)
        for name, path in results.pictures.items():
            tracker.image(name, path)
        if results.summary:
            tracker.summary(results.summary)


def results_of(folder: Path) -> Iterator[Results]:
    """What is sent of a folder; a pipeline gives its stages' results one after the other.

    Raises:
        UserError: The folder holds no run.
    """
    if (folder / STATE_FILE).is_file():
        for stage in ("search", "pretrain", "evaluate"):
            if (folder / stage / CONFIG_FILE).is_file() or (folder / stage / EVALUATION_FILE).is_file():
                yield from results_of(folder / stage)
    elif (folder / EVALUATION_FILE).is_file():
        yield _evaluation_results(folder)
    elif is_training_run(read_part(folder / CONFIG_FILE, []) or {}):
        yield _training_results(load_training(folder))
    else:
        yield _search_results(load_run(folder))


def _results(tables: list[Figures], pictures: dict[str, Path], summary: Mapping[str, Any]) -> Results:
    kept = tuple(table for table in tables if table.rows)
    there = {name: path for name, path in pictures.items() if path.is_file()}
    return Results(kept, there, {name: value for name, value in summary.items() if value is not None})


def _search_results(run: RunRecords) -> Results:
    best = run.best
    summary = {
        names.RESULT_PARAMS: best.params if best else None,
        names.RESULT_PERPLEXITY: best.perplexity if best else None,
        names.RESULT_TOKENS: number(run.spent.get("forward_tokens")),
        names.RESULT_FLOPS: number(run.spent.get("flops")),
        names.RESULT_SECONDS: sum(seconds for _, seconds in phases(run)) or None,
    }
    progress = Figures(names.HYPERVOLUME_TABLE, ("evaluations", "seconds", "hypervolume"), run.hypervolume)
    cost = cost_table(run)
    tables = [_front(run), _baselines(run), progress, Figures(names.COST_TABLE, cost.header, cost.rows)]
    return _results(tables, {names.FRONT_PICTURE: run.folder / FRONT_FILE}, summary)


def _front(run: RunRecords) -> Figures:
    columns = (
        "trial", "winner", "params", "flops_per_token", "kv_bytes_per_token", "calibration_perplexity",
        "held_out_perplexity", "held_out_stderr", "times_teacher", "layers", "hidden_size",
    )  # fmt: skip

    def row(model: Model) -> tuple[Any, ...]:
        teacher, shape = teacher_perplexity(run, model), model.shape
        times = model.perplexity / teacher if model.perplexity is not None and teacher else None
        costs = (model.cost_of(name) for name in ("params", "flops", "kv_bytes"))
        layers = (shape.num_layers, shape.hidden_size) if shape else (None, None)
        return (
            model.trial, model.winner, *costs, model.calibration_perplexity, model.held_out_perplexity,
            model.held_out_stderr, times, *layers,
        )  # fmt: skip

    return Figures(names.FRONT_TABLE, columns, tuple(map(row, run.front)))


def _baselines(run: RunRecords) -> Figures:
    columns = ("model", "params", "held_out_perplexity", "held_out_stderr")
    named = [(model.name, model) for model in (run.teacher, run.best, *run.baselines) if model is not None]
    rows = tuple((name, model.params, model.held_out_perplexity, model.held_out_stderr) for name, model in named)
    return Figures(names.BASELINE_TABLE, columns, rows)


def _training_results(run: TrainingRecords) -> Results:
    best = run.best
    last = best.evaluations[-1] if best else None
    summary = {
        names.RESULT_PARAMS: best.params if best else None,
        names.RESULT_LOSS: last.loss if last else None,
        names.RESULT_PERPLEXITY: perplexity_of_loss(last.loss) if last else None,
        names.RESULT_BITS: last.bits_per_byte if last else None,
        names.RESULT_TOKENS: last.tokens if last else None,
        names.RESULT_FLOPS: last.own_flops + last.teacher_flops if last else None,
        names.RESULT_SECONDS: last.seconds if last else None,
    }
    tables = [_models(run), _matching(run), _equal_flops(run), _curves(run)]
    return _results(tables, {names.TRAINING_PICTURE: run.folder / TRAINING_FILE}, summary)


def _models(run: TrainingRecords) -> Figures:
    columns = (
        "model", "start", "state", "params", "tokens", "first_loss", "last_loss", "last_stderr", "bits_per_byte",
        "own_flops", "teacher_flops", "search_flops", "capture_flops", "seconds", "tokens_per_second", "memory_bytes",
        "mfu", "joules",
    )  # fmt: skip

    def row(model: TrainedModel) -> tuple[Any, ...]:
        first, last = (model.evaluations[0], model.evaluations[-1]) if model.evaluations else (None, None)
        return (
            model.name, model.start, model.state, model.params, last and last.tokens, first and first.loss,
            last and last.loss, last and last.stderr, last and last.bits_per_byte, last and last.own_flops,
            last and last.teacher_flops, model.search_flops, model.capture_flops, last and last.seconds,
            model.tokens_per_second, model.memory_bytes, model.mfu, model.joules,
        )  # fmt: skip

    return Figures(names.MODELS_TABLE, columns, tuple(map(row, run.models)))


def _matching(run: TrainingRecords) -> Figures:
    columns = ("last_loss_of", "loss", "model", "tokens", "flops", "times_fewer_tokens", "times_fewer_flops")
    rows = []
    for reference in run.curves if len(run.curves) > 1 else []:
        for curve in run.curves:
            found = match(curve, reference)
            rows.append((
                reference.name, reference.final_loss, curve.name, found.tokens, found.flops, found.ratio_tokens,
                found.ratio_flops,
            ))  # fmt: skip
    return Figures(names.MATCHING_TABLE, columns, tuple(rows))


def _equal_flops(run: TrainingRecords) -> Figures:
    columns = ("model", "flops_at_most", "loss", "tokens")
    if len(run.curves) < 2:
        return Figures(names.EQUAL_FLOPS_TABLE, columns, ())
    budget, found = equal_flops(run.curves)
    rows = tuple((name, budget, point and point.loss, point and point.tokens) for name, point in found.items())
    return Figures(names.EQUAL_FLOPS_TABLE, columns, rows)


def _curves(run: TrainingRecords) -> Figures:
    rows = tuple(
        (model.name, at.tokens, at.own_flops + at.teacher_flops, at.loss, at.stderr, at.bits_per_byte)
        for model in run.models
        for at in model.evaluations
    )
    return Figures(names.CURVES_TABLE, ("model", "tokens", "flops", "loss", "stderr", "bits_per_byte"), rows)


def _evaluation_results(folder: Path) -> Results:
    result = mapping(read_json(folder / EVALUATION_FILE))
    tables = [Figures(name, columns, rows) for name, columns, rows in evaluation_tables(result)]
    picture = {names.EVALUATION_PICTURE: folder / EVALUATION_PICTURE_FILE}
    return _results(tables, picture, evaluation_figures(result))
