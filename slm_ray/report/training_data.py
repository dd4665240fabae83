"""The data of the interactive picture of training curves."""

from __future__ import annotations

from typing import Any

from slm_ray.config.units import format_count
from slm_ray.report.payload import axis_data, thinned
from slm_ray.report.training_chart import CurvePoint, TrainingChart, TrainingCurve, mark_labels
from slm_ray.report.wording import perplexity_text

_MOST_POINTS_OF_ALL, _FEWEST_POINTS = 6000, 40


def _figures(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _point(point: CurvePoint) -> list[float]:
    """Tokens, FLOPs, loss and its standard error, in as few digits as a picture and its tooltip can show."""
    return [point.tokens, _figures(point.flops, 5), round(point.loss, 4), round(point.stderr, 4)]


def _curve(curve: TrainingCurve, look: int | None, most: int) -> dict[str, Any]:
    return {"name": curve.model.name, "look": look, "points": [_point(p) for p in thinned(curve.points, most)]}


def training_data(chart: TrainingChart) -> tuple[dict[str, Any], str]:
    """Everything the page's script draws.

    Args:
        chart: The picture.

    Returns:
        The data, and a sentence on the evaluations that are left out; empty where none are.
    """
    most = max(_FEWEST_POINTS, _MOST_POINTS_OF_ALL // max(len(chart.curves), 1))
    others = [curve for curve in chart.curves if not curve.is_best]
    looks = {id(curve): index for index, curve in enumerate(others)}
    whole = sum(len(curve.points) for curve in chart.curves)
    shown = sum(min(len(curve.points), most) for curve in chart.curves)
    left_out = ""
    if shown < whole:
        left_out = (
            f"{format_count(shown)} of {format_count(whole)} evaluations are drawn, evenly spread, the first and the "
            "last of each model among them; tables and rings were made from all of them."
        )
    data = {
        "panels": [
            {"key": "tokens", "title": "Against tokens", "label": "Tokens trained on", "axis": axis_data(chart.tokens)},
            {
                "key": "flops", "title": "Against all FLOPs", "label": "FLOPs in all", "axis": axis_data(chart.flops),
                "note": "Its own, the teacher's, and those of the search and of the capture before the first step.",
            },
        ],
        "y": axis_data(chart.y), "yLabel": "Perplexity, held-out text (log scale)",
        "levels": [{"name": chart.level[0], "value": chart.level[1], "label": perplexity_text(chart.level[1])}]
        if chart.level else [],
        "curves": [_curve(curve, looks.get(id(curve)), most) for curve in chart.curves],
        "marks": [
            {
                "reference": mark.reference, "tokens": mark.at.tokens, "flops": mark.at.flops, "y": mark.at.perplexity,
                "goal": mark.perplexity,
            }
            for mark in chart.marks
        ],
        "labels": {
            quantity: [
                {"x": getattr(at, quantity), "y": at.perplexity, "text": text}
                for at, text in mark_labels(chart, quantity)
            ]
            for quantity in ("tokens", "flops")
        },
    }  # fmt: skip
    return data, left_out
