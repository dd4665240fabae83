"""The data of the picture of the front: points, axes and ticks. Nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slm_ray.config.units import format_count
from slm_ray.records.budget import QUANTITIES
from slm_ray.report.fitted import fitted_perplexity
from slm_ray.report.model import Model, RunRecords

# The front and the teacher keep at least 40% of the height; what lies higher is drawn at the top edge.
_USUAL_SHARE = 0.97
_EDGE_ROOM_SHARE = 0.2
_HEADROOM_IN_CORE_HEIGHTS = 1.0
_LEAST_HEADROOM = math.log10(2.0)
_MARGIN_SHARE = 0.06
_SAME_PLACE_SHARE = 0.3
_TICK_STEPS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 3, 4, 5, 6, 7, 8, 9),
)


@dataclass(frozen=True)
class Point:
    """A model at its place. ``edge_row`` counts rows down from the top edge for one that lies above the axis."""

    x: float
    y: float
    model: Model
    edge_row: int | None = None


@dataclass(frozen=True)
class Axis:
    """The range of an axis and its ticks with their labels."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Chart:
    """Everything the picture of the front shows.

    Attributes:
        quantity: What is on the horizontal axis: ``params``, ``flops`` or ``kv_bytes``.
        x_label: Its name with the unit.
        candidates: Those inside the axes.
        num_above: How many candidates lie above the axis and are not drawn.
        fitted: Models of the front with fitted weights, as they are exported.
        budget: The range to shade, where the budget is of the same quantity.
        is_held_out: The front was measured on held-out text (else on the calibration text).
    """

    quantity: str
    x_label: str
    x: Axis
    y: Axis
    candidates: tuple[Point, ...]
    num_above: int
    front: tuple[Point, ...]
    fitted: tuple[Point, ...]
    baselines: tuple[Point, ...]
    teacher: Point | None
    budget: tuple[float, float] | None
    is_held_out: bool


def linear_ticks(low: float, high: float, most: int = 8) -> tuple[tuple[float, str], ...]:
    """Round values between two ends, at most ``most`` of them, with labels such as ``60M``."""
    if not high > low:
        return ((low, format_count(low)),)
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return tuple((round((first + i) * step, 12), format_count((first + i) * step)) for i in range(count))


def log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Round values between two ends of a logarithmic axis: the coarsest set that gives at least four."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _TICK_STEPS:
        values = [step * 10.0**power for power in powers for step in steps]
        inside = [value for value in values if low <= value <= high]
        if len(inside) >= 4:
            return tuple((value, plain_number(value)) for value in inside)
    return tuple((value, plain_number(value)) for value, _ in linear_ticks(low, high, most=6) if value > 0)


def plain_number(value: float) -> str:
    """A tick's value in the fewest digits: ``0.5``, ``30``, ``20K``."""
    return format_count(value) if value >= 1e4 else f"{value:g}"


def choose_y_range(core: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The range of the perplexity axis.

    Args:
        core: What must be readable: the front and the teacher.
        others: What may be pushed to the edge: candidates and baselines.

    Returns:
        The least and the largest value, with margins. The core takes at least 40% of the logarithmic height.
    """
    core = list(core) or list(others)
    if not core:
        return 1.0, 100.0
    low, high = math.log10(min(core)), math.log10(max(core))
    limit = high + max(_HEADROOM_IN_CORE_HEIGHTS * (high - low), _LEAST_HEADROOM)
    logs = sorted(math.log10(value) for value in others)
    usual = logs[: math.ceil(_USUAL_SHARE * len(logs))]
    low = min([low, *logs])
    high = max([high, *(value for value in usual if value <= limit)])
    margin = max(_MARGIN_SHARE * (high - low), 0.02)
    # A point just above the usual ones costs less height inside the axis than a place at its edge.
    high = max([high, *(value for value in logs if value <= high + 2 * margin)])
    room = _EDGE_ROOM_SHARE * (high - low) if any(value > high for value in logs) else 0.0
    return 10 ** (low - 1.5 * margin), 10 ** (high + max(margin, room))


def _choose_x_range(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * high or 1.0
    return max(low - margin, 0.0), high + margin


def _points(models: Sequence[Model], quantity: str) -> list[Point]:
    placed = [(model.cost_of(quantity), model.perplexity, model) for model in models]
    return [Point(x, y, model) for x, y, model in placed if x is not None and y is not None]


def _fitted_points(front: Sequence[Point]) -> tuple[Point, ...]:
    placed = [(point, fitted_perplexity(point.model)[0]) for point in front]
    return tuple(Point(point.x, value, point.model) for point, value in placed if value is not None)


def edge_rows(points: Sequence[Point], y_high: float, x_span: float) -> tuple[Point, ...]:
    """Give the points above the axis a row each where they would share a place; the worst is in the first row."""
    rows: list[Point] = []
    above = sorted((point for point in points if point.y > y_high), key=lambda point: -point.y)
    for point in above:
        near = {other.edge_row for other in rows if abs(other.x - point.x) <= _SAME_PLACE_SHARE * x_span}
        row = next(i for i in range(len(rows) + 1) if i not in near)
        rows.append(Point(point.x, point.y, point.model, row))
    return (*(point for point in points if point.y <= y_high), *rows)


def chart_data(run: RunRecords) -> Chart:
    """Compute the picture of the front from a run's records."""
    quantity = next((name for name in run.objectives if name in QUANTITIES), "params")
    front, baselines = _points(run.front, quantity), _points(run.baselines, quantity)
    teachers = _points([run.teacher] if run.teacher else [], quantity)
    on_front = {model.trial for model in run.front}
    candidates = _points([model for model in run.candidates if model.trial not in on_front], quantity)
    everything = [*front, *baselines, *teachers, *candidates]
    fitted = _fitted_points(front)
    core = [point.y for point in (*front, *fitted, *teachers)]
    y_low, y_high = choose_y_range(core, [point.y for point in (*baselines, *candidates)])
    budget = (run.budget[1], run.budget[2]) if run.budget and run.budget[0] == quantity else None
    x_low, x_high = _choose_x_range([point.x for point in everything])
    inside = tuple(point for point in candidates if point.y <= y_high)
    name = QUANTITIES[quantity]
    return Chart(
        quantity=quantity,
        x_label=name[0].upper() + name[1:],
        x=Axis(x_low, x_high, linear_ticks(x_low, x_high)),
        y=Axis(y_low, y_high, log_ticks(y_low, y_high)),
        candidates=inside,
        num_above=len(candidates) - len(inside),
        front=tuple(front),
        fitted=fitted,
        baselines=edge_rows(baselines, y_high, x_high - x_low),
        teacher=teachers[0] if teachers else None,
        budget=budget,
        is_held_out=any(point.model.held_out_perplexity is not None for point in front),
    )
