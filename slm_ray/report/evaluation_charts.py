"""The pictures of an evaluation: intervals of scores and differences, and efficiency against quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from slm_ray.config.units import format_bytes, format_count
from slm_ray.records.evaluation import ModelFigures
from slm_ray.records.measurement import Figure
from slm_ray.report.charts import Looks, Picture, Row, View, data, intervals, tips
from slm_ray.report.evaluation import (
    EvaluationRun,
    difference_cells,
    ends_of,
    figure_of,
    text_of,
)
from slm_ray.report.evaluation_tasks import TaskRow, task_models, task_rows
from slm_ray.report.placing import Axis, axis_over
from slm_ray.report.text import WITHIN, perplexity_text

_NOISE = (WITHIN, "noise not known")
_PANELS = (
    ("text", "loss", "Loss less that of {}, nats per token (left of 0 is better)", 1.0),
    ("text", "bits_per_byte", "Bits per byte less those of {} (left of 0 is better)", 1.0),
    ("task", None, "Score less that of {}, points of per cent (right of 0 is better)", 100.0),
)


def looks_of(run: EvaluationRun) -> Looks:
    """How each model is drawn in every picture."""
    names = tuple(run.full_name(model) for model in run.models)
    teachers = frozenset(run.full_name(model) for model in run.models[1:] if model.role == "teacher")
    return Looks(names, names[0] if names else None, teachers)


def _row(run: EvaluationRun, model: ModelFigures, group: str, figure: Figure, *facts: str, times: float = 1.0,
         hollow: bool = False) -> Row:  # fmt: skip
    name, (low, high) = run.full_name(model), ends_of(figure)
    return {
        "group": group, "series": name, "value": times * (figure.value or 0.0), "low": times * low,
        "high": times * high, "hollow": hollow,
        "tip": "\n".join([f"{group}: {name}", *(fact for fact in facts if fact)]),
    }  # fmt: skip


def _axis(rows: Sequence[Row], title: str, *more: float) -> Axis:
    ends = [row[end] for row in rows for end in ("low", "high")]
    found = axis_over([*ends, *more], title)
    return found if not found.log else axis_over([*ends, *more, 0.0], title)


def text_picture(run: EvaluationRun) -> Picture | None:
    """Bits per byte by domain: they can be compared whatever the tokenizers are."""
    rows = []
    for domain in run.domains:
        for model in run.models:
            if text := text_of(model, domain):
                figure = figure_of(text, "bits_per_byte")
                low, high = ends_of(figure)
                bits = f"{text.bits_per_byte:.4f} bits per byte ({low:.4f} to {high:.4f})"
                rows.append(_row(run, model, domain, figure, bits, f"perplexity {perplexity_text(text.perplexity)}"))
    title = "Bits per byte (less is better)"
    return Picture((intervals(rows, looks_of(run), _axis(rows, title)),)) if rows else None


def tasks_picture(run: EvaluationRun) -> Picture | None:
    """Scores of tasks, groups and averages whose metric is a share; the tasks inside groups are in the table alone."""
    shown = [row for row in task_rows(run) if row.kind != "member" and row.is_share]
    rows: list[Row] = []
    chances: list[Row] = []
    for task in shown:
        for place, model in enumerate(task_models(run)):
            score = task.scores[place]
            if score is not None and score.value is not None:
                fact = f"{task.metric} {task.cell(place)}"
                rows.append(_row(run, model, task.title, score, fact, task.facts, times=100, hollow=task.noisy[place]))
        if task.chance is not None:
            chances.append({"group": task.title, "value": 100 * task.chance})
    title = "Score, % (more is better; hollow: within the noise of the first; dashed: chance)"
    x = _axis(rows, title, *(chance["value"] for chance in chances))
    return Picture((intervals(rows, looks_of(run), x, chances=chances),)) if rows else None


def difference_pictures(run: EvaluationRun) -> list[Picture]:
    """Every comparison: a picture per model compared with, kind and quantity that share a scale."""
    by_name = {model.name: model for model in run.models}
    tasks = {row.name: row for row in task_rows(run)}
    found = []
    for to in [name for name in dict.fromkeys(d.to for d in run.differences) if name in by_name]:
        for kind, quantity, title, times in _PANELS:
            rows = []
            for d in run.differences:
                task = tasks.get(d.of) if kind == "task" else None
                if (d.to, d.kind) != (to, kind) or quantity not in (None, d.quantity) or d.model not in by_name:
                    continue
                if task and (task.kind == "member" or not task.is_share):
                    continue
                cells = difference_cells(d)
                interval = None if d.low is None or d.high is None else (d.low, d.high)
                figure = Figure(value=d.difference, stderr=d.stderr, interval=interval)
                facts = (f"{d.quantity.replace('_', ' ')} {cells[0]} ({cells[1]})", cells[2])
                group = task.title if task else d.of
                rows.append(_row(run, by_name[d.model], group, figure, *facts, times=times, hollow=d.verdict in _NOISE))
            if rows:
                x = _axis(rows, title.format(run.called(to)), 0.0)
                found.append(Picture((intervals(rows, looks_of(run), x, zero=True),)))
    return found


# Label, field of the efficiency figures, factor, and how a value is written.
_COSTS: tuple[tuple[str, str, float, Callable[[float], str]], ...] = (
    ("Decode, tokens/s", "decode", 1, lambda value: f"{value:,.1f}"),
    ("Prefill, tokens/s", "prefill", 1, lambda value: f"{value:,.0f}"),
    ("Parameters", "params", 1, format_count),
    ("FLOPs per token", "flops_per_token", 1, format_count),
    ("Peak memory, MiB", "peak_memory_bytes", 2**-20, lambda value: format_bytes(value * 2**20)),
    ("KV cache per token, bytes", "kv_bytes_per_token", 1, format_bytes),
)


@dataclass(frozen=True)
class Quantity:
    """What models are shown by: its label with the unit, and figures with their texts by model."""

    label: str
    figures: Mapping[str, tuple[Figure, str]]


def _costs(run: EvaluationRun) -> list[Quantity]:
    """What a model costs to run, as far as two models have it; of rates the first that was measured."""
    found = []
    for label, name, times, write in _COSTS:
        figures, setting = {}, ""
        for model in run.models:
            value = getattr(model.efficiency, name) if model.efficiency else None
            if value and isinstance(value, tuple):
                setting = setting or f" (batch {value[0].batch}, {value[0].tokens} tokens)"
                value = value[0].tokens_per_second
            if value is not None and value != ():
                figures[model.name] = (Figure(value=times * value), write(times * value))
        found.append(Quantity(f"{label}{setting}", figures))
    return [quantity for quantity in found if len(quantity.figures) > 1]


def _qualities(run: EvaluationRun) -> list[Quantity]:
    """Bits per byte of each domain and averages of suites (single tasks where there is none)."""
    found = []
    for domain in run.domains:
        texts = [(model.name, text) for model in run.models if (text := text_of(model, domain))]
        figures = {name: (figure_of(text, "bits_per_byte"), f"{text.bits_per_byte:.4f}") for name, text in texts}
        found.append(Quantity(f"Bits per byte, {domain}", figures))
    rows = [row for row in task_rows(run) if row.kind != "member" and row.is_share]
    for row in [row for row in rows if row.kind == "average"] or rows:
        found.append(Quantity(f"{row.title}, %", _percents(run, row)))
    return [quantity for quantity in found if len(quantity.figures) > 1]


def _percents(run: EvaluationRun, row: TaskRow) -> dict[str, tuple[Figure, str]]:
    found = {}
    for place, model in enumerate(task_models(run)):
        score = row.scores[place]
        if score is not None and score.value is not None:
            low, high = ends_of(score)
            figure = Figure(value=100 * score.value, interval=(100 * low, 100 * high))
            found[model.name] = (figure, row.cell(place))
    return found


def efficiency_picture(run: EvaluationRun) -> Picture | None:
    """Any cost against any quality, chosen by the reader; None where fewer than two models have both."""
    costs, qualities = _costs(run), _qualities(run)
    rows = []
    for cost in costs:
        for quality in qualities:
            for model in run.models:
                if model.name not in cost.figures or model.name not in quality.figures:
                    continue
                (x, shown), (y, written) = cost.figures[model.name], quality.figures[model.name]
                low, high = ends_of(y)
                name = run.full_name(model)
                rows.append({
                    "across": cost.label, "up": quality.label, "series": name, "x": x.value, "y": y.value, "low": low,
                    "high": high, "tip": f"{name}\n{cost.label}: {shown}\n{quality.label}: {written}",
                })  # fmt: skip
    if not rows:
        return None
    choices = [
        alt.param(name=name, value=found[0].label,
                  bind=alt.binding_select(options=[one.label for one in found], name=f"{title} "))
        for name, title, found in (("across", "Across", costs), ("up", "Up", qualities))
    ]  # fmt: skip
    looks = looks_of(run)
    grid = alt.Axis(tickCount=6, format="~s")
    across = alt.X("x:Q", title=None, scale=alt.Scale(zero=False, padding=24), axis=grid)
    chosen = data("rows").transform_filter("datum.across === across && datum.up === up")
    base = chosen.encode(x=across, color=looks.color())
    free = alt.Scale(zero=False, padding=24)
    whiskers = base.mark_rule(strokeWidth=1.8).encode(y=alt.Y("low:Q", title=None, scale=free), y2="high:Q")
    points = base.mark_point(filled=True, size=120, opacity=1).encode(
        y=alt.Y("y:Q", title=None, scale=free), shape=looks.shape(), tooltip=tips()
    )  # fmt: skip
    heading = alt.TitleParams(text=alt.ExprRef("up + ' against ' + across"))
    return Picture(
        (View(alt.layer(whiskers, points).add_params(*choices).properties(title=heading), {"rows": rows}, 380),)
    )
