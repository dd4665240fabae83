"""The data of a page's interactive pictures, as JSON that is safe inside a script tag, and those of a search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from slm_ray.report.chart import Axis, Point, chart_data, linear_ticks, log_ticks
from slm_ray.report.fitted import fitted_perplexity
from slm_ray.report.model import Model, RunRecords, Shape
from slm_ray.report.tables import teacher_perplexity
from slm_ray.report.wording import MISSING, count_text, perplexity_text, ratio_text, shape_text, share_text

_T = TypeVar("_T")
MOST_CANDIDATES = 3000


def thinned(items: Sequence[_T], most: int) -> list[_T]:
    """At most so many of some items, evenly spread; the first and the last are among them."""
    if len(items) <= most:
        return list(items)
    places = sorted({round(i * (len(items) - 1) / (most - 1)) for i in range(most)}) if most > 1 else [0]
    return [items[place] for place in places]


def script_json(value: Any) -> str:
    """JSON that cannot end the script tag it stands in, whatever names are in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def axis_data(axis: Axis) -> dict[str, Any]:
    """An axis as the page's script takes it."""
    return {"low": axis.low, "high": axis.high, "ticks": axis.ticks}


def shape_data(shape: Shape | None) -> dict[str, Any] | None:
    """A shape as the page's script takes it."""
    if shape is None:
        return None
    return {
        "width": shape.hidden_size,
        "layers": shape.source_layers,
        "heads": shape.num_attention_heads,
        "kv": shape.num_key_value_heads,
        "neurons": shape.intermediate_size,
    }


def model_facts(run: RunRecords, model: Model) -> list[str]:
    """What a tooltip says of a model, line by line."""
    teacher = run.teacher
    share = share_text(model.params, teacher.params if teacher else None)
    lines = [f"{count_text(model.params)} parameters" + ("" if share == MISSING else f", {share} of the teacher")]
    fitted, fitted_stderr = fitted_perplexity(model)
    for name, value, stderr in (
        ("held-out perplexity", model.held_out_perplexity, model.held_out_stderr),
        ("with fitted weights", fitted, fitted_stderr),
    ):
        if value is not None:
            ratio = ratio_text(value, teacher_perplexity(run, model))
            times = "" if ratio == MISSING or model is teacher else f", {ratio} the teacher's"
            lines.append(f"{name} {perplexity_text(value, stderr)}{times}")
    if model.calibration_perplexity is not None:
        tokens = model.detail("tokens")
        on = f" on {tokens:,.0f} tokens" if tokens else ""
        lines.append(
            f"calibration perplexity {perplexity_text(model.calibration_perplexity, model.calibration_stderr)}{on}"
        )
    if model.detail("decided") == "dominated":
        lines.append("given up early: the front beats it")
    if model.shape is not None:
        lines.append(shape_text(model.shape, teacher.shape if teacher and model is not teacher else None))
    return lines


def _point(run: RunRecords, point: Point, name: str | None = None) -> dict[str, Any]:
    model = point.model
    values = {
        "name": name or model.name,
        "x": point.x,
        "y": float(f"{point.y:.6g}"),
        "label": perplexity_text(point.y),
        "facts": model_facts(run, model),
        "shape": shape_data(model.shape),
        "winner": model.winner,
        "row": point.edge_row,
    }
    return {key: value for key, value in values.items() if value is not None}


def _front_point(run: RunRecords, point: Point, fitted: float | None) -> dict[str, Any]:
    """A model of the front; where its weights were fitted, with its perplexity then."""
    after = {} if fitted is None else {"fitted": float(f"{fitted:.6g}"), "fittedLabel": perplexity_text(fitted)}
    return _point(run, point, _front_name(point.model)) | after


def _front_name(model: Model) -> str:
    return f"winner {model.winner} ({model.name})" if model.winner is not None else model.name


def progress_data(run: RunRecords) -> dict[str, Any] | None:
    """The hypervolume against evaluations and time; None where there are fewer than two measurements."""
    if len(run.hypervolume) < 2:
        return None
    evaluations, seconds, values = zip(*run.hypervolume, strict=True)
    top = max(values)
    return {
        "value": {
            "low": 0,
            "high": top * 1.05 or 1,
            "ticks": [(v, f"{v:.3g}") for v, _ in linear_ticks(0, top * 1.05 or 1, 5)],
        },
        "evaluations": {
            "at": evaluations,
            "low": 0,
            "high": max(evaluations),
            "ticks": linear_ticks(0, max(evaluations), 6),
        },
        "seconds": {"at": seconds, "low": 0, "high": max(seconds), "ticks": linear_ticks(0, max(seconds), 6)},
        "values": values,
    }


def front_data(run: RunRecords, most: int = MOST_CANDIDATES) -> dict[str, Any]:
    """The front with its candidates, baselines and teacher, and the layers of each.

    Args:
        run: The search's records.
        most: How many candidates off the front are drawn; how many are not is part of the data, and said below them.
    """
    chart = chart_data(run)
    shown = thinned(chart.candidates, most)
    best = run.best
    fitted = {point.model.trial: point.y for point in chart.fitted}
    return {
        "xLabel": chart.x_label,
        "yLabel": f"Perplexity, {'held-out' if chart.is_held_out else 'calibration'} text (log scale)",
        "x": axis_data(chart.x),
        "y": axis_data(chart.y) | {"ticks": log_ticks(chart.y.low, chart.y.high)},
        "budget": chart.budget,
        "numAbove": chart.num_above,
        "candidatesNote": bool(chart.candidates) and chart.is_held_out,
        "numLeftOut": len(chart.candidates) - len(shown),
        "candidates": [_point(run, point) for point in shown],
        "front": [_front_point(run, point, fitted.get(point.model.trial)) for point in chart.front],
        "best": next((i for i, point in enumerate(chart.front) if point.model is best), None),
        "baselines": [_point(run, point) for point in sorted(chart.baselines, key=lambda p: p.model.name)],
        "teacher": _point(run, chart.teacher) if chart.teacher else None,
        "teacherShape": shape_data(run.teacher.shape) if run.teacher else None,
    }
