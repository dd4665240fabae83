"""The data of the picture of training: curves, marks, axes and ticks. Nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slm_ray.report.chart import Axis, choose_y_range, linear_ticks, log_ticks
from slm_ray.report.matching import format_flops, match
from slm_ray.report.training import TrainedModel, TrainingRecords

_MOST_LOSS = 300.0  # its perplexity is still a float that can be squared


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation: ``flops`` are all that were spent by then, the search's and the capture's included."""

    tokens: float
    flops: float
    loss: float
    stderr: float

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return math.exp(min(self.loss, _MOST_LOSS))


@dataclass(frozen=True)
class TrainingCurve:
    """One model's line; ``is_best`` for the one that the picture is about."""

    model: TrainedModel
    points: tuple[CurvePoint, ...]
    is_best: bool


@dataclass(frozen=True)
class Mark:
    """Where the best model first was as good as another ended: ``reference`` is that one's place among the curves."""

    reference: int
    at: CurvePoint
    perplexity: float
    tokens_text: str
    flops_text: str


@dataclass(frozen=True)
class TrainingChart:
    """Everything the picture of training shows: perplexity (log) against tokens, and against FLOPs."""

    curves: tuple[TrainingCurve, ...]
    marks: tuple[Mark, ...]
    level: tuple[str, float] | None
    tokens: Axis
    flops: Axis
    y: Axis


def _points(model: TrainedModel) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(e.tokens, model.all_flops(e), e.loss, e.stderr or 0.0) for e in model.evaluations)


def times_text(value: float | None) -> str:
    """A ratio of costs in words: ``12× fewer``, ``1.3× more``, ``as many``."""
    if value is None:
        return ""
    if abs(value - 1) < 0.005:
        return "as many"
    return f"{value:.3g}× fewer" if value >= 1 else f"{1 / value:.3g}× more"


def _marks(curves: Sequence[TrainingCurve]) -> list[Mark]:
    best = next((curve for curve in curves if curve.is_best), None)
    mine = best.model.curve if best else None
    if best is None or mine is None:
        return []
    marks = []
    for index, other in enumerate(curves):
        theirs = other.model.curve
        if other is best or theirs is None:
            continue
        found = match(mine, theirs)
        if found.tokens is None:
            continue
        at = next(point for point in best.points if point.loss <= theirs.final_loss)
        tokens = times_text(found.ratio_tokens) if found.tokens else "before its first step"
        goal = math.exp(min(theirs.final_loss, _MOST_LOSS))
        marks.append(Mark(index, at, goal, tokens, times_text(found.ratio_flops)))
    return marks


def short_names(models: Sequence[TrainedModel]) -> list[str]:
    """Their starts where each model has one of its own, else their names."""
    starts = [model.start for model in models]
    return starts if len(set(starts)) == len(starts) else [model.name for model in models]


def mark_labels(chart: TrainingChart, quantity: str) -> list[tuple[CurvePoint, str]]:
    """What to write beside the rings, for ``tokens`` or ``flops``; rings at one place share a label."""
    names = short_names([curve.model for curve in chart.curves])
    found: dict[tuple[CurvePoint, str], list[str]] = {}
    for mark in chart.marks:
        text = mark.tokens_text if quantity == "tokens" else mark.flops_text
        if text:
            found.setdefault((mark.at, text), []).append(names[mark.reference])
    return [(at, f"{' and '.join(matched)} matched: {text}") for (at, text), matched in found.items()]


def _x_axis(values: Sequence[float], write: bool) -> Axis:
    high = max(values, default=0.0) * 1.02 or 1.0
    ticks = linear_ticks(0.0, high, most=6)
    return Axis(0.0, high, tuple((v, format_flops(v)) for v, _ in ticks) if write else ticks)


def training_chart(run: TrainingRecords, *, marked: bool = True) -> TrainingChart:
    """Compute the picture from a run's records.

    Args:
        run: The records.
        marked: With the places where the best model was as good as another ended.
    """
    best = run.best
    curves = tuple(TrainingCurve(model, _points(model), model is best) for model in run.models if model.evaluations)
    everything = [point for curve in curves for point in curve.points]
    core = [curve.points[-1].perplexity for curve in curves]
    core += [point.perplexity for curve in curves if curve.is_best for point in curve.points]
    core += [math.exp(min(run.level.loss, _MOST_LOSS))] if run.level else []
    low, high = choose_y_range(core, [point.perplexity for point in everything])
    return TrainingChart(
        curves=curves,
        marks=tuple(_marks(curves)) if marked else (),
        level=(run.level.name, math.exp(min(run.level.loss, _MOST_LOSS))) if run.level else None,
        tokens=_x_axis([point.tokens for point in everything], write=False),
        flops=_x_axis([point.flops for point in everything], write=True),
        y=Axis(low, high, log_ticks(low, high)),
    )
