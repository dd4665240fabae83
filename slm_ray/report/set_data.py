"""What several runs have together: their training curves, their fronts, their evaluations, as records and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_ray.config.units import format_count
from slm_ray.report.chart import chart_data, choose_y_range, linear_ticks, log_ticks
from slm_ray.report.evaluation_names import short_names
from slm_ray.report.evaluation_records import EvaluationRecords
from slm_ray.report.evaluation_tables import domains_of, fixed
from slm_ray.report.evaluation_tasks import is_share, score_text, task_models, task_rows
from slm_ray.report.matching import match
from slm_ray.report.model import RunRecords
from slm_ray.report.payload import model_facts, shape_data
from slm_ray.report.records import read_part
from slm_ray.report.tables import Table, without_empty_columns
from slm_ray.report.training import TrainingRecords
from slm_ray.report.training_chart import times_text
from slm_ray.report.wording import MISSING, count_text, perplexity_text

Named = Sequence[tuple[str, Any]]


def run_names(folders: Sequence[Path]) -> list[str]:
    """What to call runs: their folders by as few parts as tell them apart."""
    short = short_names([str(folder.absolute()) for folder in folders])
    return [short[str(folder.absolute())] for folder in folders]


def merge_training(runs: Sequence[tuple[str, TrainingRecords]]) -> TrainingRecords:
    """All models of several runs as if they were of one, with their run in their names."""
    models = [
        replace(model, name=name if len(run.models) == 1 else f"{name}: {model.name}")
        for name, run in runs
        for model in run.models
    ]
    levels = {run.level for _, run in runs}
    return TrainingRecords(
        runs[0][1].folder, all(run.finished for _, run in runs), (), {}, {}, None, tuple(models),
        levels.pop() if len(levels) == 1 else None,
    )  # fmt: skip


def held_out_note(runs: Sequence[tuple[str, TrainingRecords]]) -> str:
    """A sentence where runs were not measured on the same tokens; empty where they were, or where that is not known."""
    found = {name: (read_part(run.folder / "inputs.json", []) or {}).get("held_out_tokens") for name, run in runs}
    digests = {digest for digest in found.values() if digest}
    if len(digests) < 2:
        return ""
    return (
        f"These runs were measured on {len(digests)} different sets of held-out tokens: compare perplexities only "
        "inside a run, or of runs with the same text."
    )


def best_matching_table(run: TrainingRecords) -> Table:
    """What the best model of all needed to get as far as each of the others."""
    curves = run.curves
    best = next((curve for curve in curves if run.best and curve.name == run.best.name), None)
    header = ("to reach the last loss of", "loss", "tokens", "tokens, against its own", "FLOPs, against its own")
    rows = []
    for other in curves if best else ():
        if other is best or best is None:
            continue
        found = match(best, other)
        tokens = "not reached" if found.tokens is None else format_count(found.tokens)
        ratios = (times_text(found.ratio_tokens) or MISSING, times_text(found.ratio_flops) or MISSING)
        rows.append((other.name, f"{other.final_loss:.4f}", tokens, *ratios))
    return without_empty_columns(Table(f"What {best.name if best else 'the best'} needed", header, tuple(rows)))


def fronts_data(runs: Sequence[tuple[str, RunRecords]]) -> dict[str, Any] | None:
    """The fronts of several searches in one picture; None where fewer than two have one, or sizes are not the same."""
    charts = [(name, run, chart_data(run)) for name, run in runs if run.front]
    charts = [(name, run, chart) for name, run, chart in charts if chart.front]
    if len(charts) < 2 or len({chart.quantity for _, _, chart in charts}) > 1:
        return None
    teachers = {(c.teacher.model.name, c.teacher.y) for _, _, c in charts if c.teacher}
    points = [point for _, _, chart in charts for point in chart.front]
    sizes = [point.x for point in points]
    y_low, y_high = choose_y_range([p.y for p in points] + [y for _, y in teachers], [])
    margin = 0.06 * (max(sizes) - min(sizes)) or 0.1 * max(sizes)
    low, high = max(min(sizes) - margin, 0.0), max(sizes) + margin
    held_out = all(chart.is_held_out for _, _, chart in charts)
    return {
        "panels": [{
            "key": "x", "label": charts[0][2].x_label,
            "axis": {"low": low, "high": high, "ticks": linear_ticks(low, high)},
        }],
        "y": {"low": y_low, "high": y_high, "ticks": log_ticks(y_low, y_high)},
        "yLabel": f"Perplexity, {'held-out' if held_out else 'calibration'} text (log scale)",
        "levels": [{"name": f"teacher {n}", "value": y, "label": perplexity_text(y)} for n, y in sorted(teachers)],
        "curves": [
            {
                "name": name, "look": None if place == 0 else place - 1,
                "points": [
                    {
                        "x": point.x, "y": float(f"{point.y:.6g}"), "name": f"{name}: {point.model.name}",
                        "facts": model_facts(run, point.model), "shape": shape_data(point.model.shape),
                        "teacherShape": shape_data(run.teacher.shape) if run.teacher else None,
                    }
                    for point in chart.front
                ],
            }
            for place, (name, run, chart) in enumerate(charts)
        ],
        "marks": [], "labels": {},
    }  # fmt: skip


def fronts_table(runs: Sequence[tuple[str, RunRecords]]) -> Table:
    """A row per search: its best model beside its teacher."""
    rows = []
    for name, run in runs:
        best, teacher = run.best, run.teacher
        rows.append((
            name, teacher.name if teacher else MISSING, str(run.config.get("space") or MISSING),
            count_text(len(run.candidates)), count_text(len(run.front)), count_text(best.params if best else None),
            perplexity_text(best.perplexity if best else None, best.stderr if best else None),
            perplexity_text(teacher.held_out_perplexity if teacher else None),
        ))  # fmt: skip
    header = ("run", "teacher", "space", "candidates", "front", "winner's parameters", "its perplexity", "teacher's")
    return without_empty_columns(Table("The searches", header, tuple(rows)))


def evaluations_table(runs: Sequence[tuple[str, EvaluationRecords]]) -> Table:
    """A row per model of each evaluation: bits per byte of every text, and averages of suites (tasks without one)."""
    domains = list(dict.fromkeys(domain for _, run in runs for domain in domains_of(run)))
    shown = [(name, run, _task_columns(run)) for name, run in runs]
    tasks = list(dict.fromkeys(title for _, _, columns in shown for title in columns))
    rows = []
    for name, run, columns in shown:
        for model in run.models:
            texts = [model.text(domain) for domain in domains]
            bits = [fixed(t.bits_per_byte.value if t and t.bits_per_byte else None, 4) for t in texts]
            scores = [columns.get(title, {}).get(model.short, MISSING) for title in tasks]
            rows.append((name, model.short, count_text(model.params), *bits, *scores))
    header = ("run", "model", "parameters", *(f"bits per byte, {domain}" for domain in domains), *tasks)
    return without_empty_columns(Table("The evaluations", header, tuple(rows)))


def _task_columns(run: EvaluationRecords) -> dict[str, dict[str, str]]:
    rows = [row for row in task_rows(run) if row.kind != "member" and is_share(row)]
    chosen = [row for row in rows if row.kind == "average"] or rows
    models = task_models(run)
    return {
        row.title: {model.short: score_text(row, place).removesuffix(" ≈") for place, model in enumerate(models)}
        for row in chosen
    }
