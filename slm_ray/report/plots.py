"""Draws the picture of the front. What is in it comes from :mod:`slm_ray.report.chart`."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm_ray.records.files import write_bytes
from slm_ray.report.chart import Chart, Point, chart_data
from slm_ray.report.labels import Box, Label, place_labels
from slm_ray.report.model import RunRecords
from slm_ray.report.tables import best_name
from slm_ray.report.wording import count_text, perplexity_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_INCHES, _DPI = (12.0, 7.5), 100
# Okabe and Ito's colours: told apart with any kind of colour vision. Shapes differ as well.
_INK, _MUTED, _GRID, _CANDIDATE, _FRONT, _TEACHER, _BUDGET = (
    "#1f2328", "#59636e", "#e6e9ec", "#9aa5b1", "#0072b2", "#1f2328", "#56b4e9",
)  # fmt: skip
_BASELINES = (("#d55e00", "s"), ("#cc79a7", "^"), ("#009e73", "D"), ("#e69f00", "v"), ("#7a5195", "P"))
_LEGEND_ORDER = ("front", "winners", "weights fitted", "teacher", "budget")
_CROWDED = 50
_LINE_STEP_PIXELS, _LEADER_PIXELS = 24, 24.0
_EDGE_TOP_PIXELS, _EDGE_ROW_PIXELS = 20.0, 24.0


def _style(ax: Axes, chart: Chart) -> None:
    ax.set_yscale("log")
    ax.set_xlim(chart.x.low, chart.x.high)
    ax.set_ylim(chart.y.low, chart.y.high)
    ax.set_xticks([value for value, _ in chart.x.ticks], [label for _, label in chart.x.ticks])
    ax.set_yticks([value for value, _ in chart.y.ticks], [label for _, label in chart.y.ticks])
    ax.minorticks_off()
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=11, colors=_MUTED, pad=6)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#b4bcc4")
    text = "held-out text" if chart.is_held_out else "calibration text"
    ax.set_xlabel(chart.x_label, fontsize=12, color=_INK, labelpad=8)
    ax.set_ylabel(f"Perplexity, {text} (log scale)", fontsize=12, color=_INK, labelpad=8)


def _draw_points(ax: Axes, chart: Chart) -> None:
    if chart.budget:
        ax.axvspan(*chart.budget, color=_BUDGET, alpha=0.10, linewidth=0, label="budget", zorder=0)
    if chart.candidates:
        above = f", {chart.num_above:,} more above" if chart.num_above else ""
        number = f"{len(chart.candidates):,}"
        label = f"candidates, calibration text ({number}{above})"
        xs, ys = [point.x for point in chart.candidates], [point.y for point in chart.candidates]
        ax.scatter(xs, ys, s=20, color=_CANDIDATE, alpha=0.5, linewidth=0, label=label, zorder=2)
    if chart.teacher:
        ax.axhline(chart.teacher.y, color=_TEACHER, linewidth=1.0, linestyle=(0, (5, 4)), alpha=0.55, zorder=1)
        style: dict[str, Any] = {"s": 300, "color": _TEACHER, "marker": "*", "linewidth": 0, "zorder": 6}
        ax.scatter([chart.teacher.x], [chart.teacher.y], label="teacher", **style)
    if chart.front:
        xs, ys = [point.x for point in chart.front], [point.y for point in chart.front]
        size = 6.5 if len(xs) <= _CROWDED else 4.0
        name = "front" if chart.is_held_out else "front on the calibration text"
        line: dict[str, Any] = {
            "color": _FRONT,
            "linewidth": 2.0,
            "marker": "o",
            "markersize": size,
            "markeredgecolor": "white",
        }
        ax.plot(xs, ys, label=name, zorder=4, **line)
        winners = [point for point in chart.front if point.model.winner is not None]
        ring: dict[str, Any] = {"s": 150, "facecolor": _FRONT, "edgecolor": "white", "linewidth": 1.6, "zorder": 5}
        if winners:
            ax.scatter([p.x for p in winners], [p.y for p in winners], label="winners", **ring)
        _draw_fitted(ax, chart)


def _draw_fitted(ax: Axes, chart: Chart) -> None:
    """Where models of the front are with fitted weights, each joined to where it was cut out."""
    cut = {point.model.trial: point.y for point in chart.front}
    for point in chart.fitted:
        ends = (point.y, cut[point.model.trial])
        ax.plot([point.x, point.x], ends, color=_FRONT, linewidth=1.2, alpha=0.7, zorder=3)
    if chart.fitted:
        xs, ys = [point.x for point in chart.fitted], [point.y for point in chart.fitted]
        ring: dict[str, Any] = {"facecolor": "white", "edgecolor": _FRONT, "linewidth": 2.0}
        ax.scatter(xs, ys, s=70, label="weights fitted, as exported", zorder=5, **ring)


@dataclass(frozen=True)
class _Wanted:
    """A label to write beside a point, whose place is in pixels."""

    x: float
    y: float
    text: str
    color: str
    prefer: tuple[int, int]
    weight: str = "normal"


def _draw_baselines(ax: Axes, chart: Chart) -> list[_Wanted]:
    """Draw the baselines and give their labels, the highest first."""
    top = ax.transData.transform((chart.x.low, chart.y.high))[1]
    labels = []
    for index, point in enumerate(sorted(chart.baselines, key=lambda p: p.model.name)):
        color, marker = _BASELINES[index % len(_BASELINES)]
        x, y = _pixels(ax, point)
        text = f"{point.model.name}  {perplexity_text(point.y)}"
        if point.edge_row is not None:
            y = top - _EDGE_TOP_PIXELS - _EDGE_ROW_PIXELS * point.edge_row
            text = f"↑ {text}"
        at = ax.transData.inverted().transform((x, y))
        ax.scatter([at[0]], [at[1]], s=80, color=color, marker=marker, edgecolor="white", linewidth=1.0, zorder=5)
        labels.append(_Wanted(x, y, text, _INK, (1, 0)))
    return sorted(labels, key=lambda label: -label.y)


def _pixels(ax: Axes, point: Point) -> tuple[float, float]:
    x, y = ax.transData.transform((point.x, point.y))
    return float(x), float(y)


def _along(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a line through pixels, its corners among them, so close that no label fits between."""
    found = corners[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        count = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / _LINE_STEP_PIXELS))
        found += [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(1, count + 1)]
    return found


def _model_labels(ax: Axes, chart: Chart, run: RunRecords) -> list[_Wanted]:
    """The labels of the winners (of the best model where there are none) and of the teacher."""
    winners = [point for point in chart.front if point.model.winner is not None]
    fitted = {point.model.trial: point for point in chart.fitted}
    labels = []
    for cut in winners or [point for point in chart.front if point.model is run.best]:
        point = fitted.get(cut.model.trial, cut)
        name = f"winner {cut.model.winner}" if cut.model.winner is not None else best_name(run)
        text = f"{name}  {perplexity_text(point.y)}  ({count_text(point.model.params)})"
        labels.append(
            _Wanted(*_pixels(ax, point), text, _FRONT, (-1, -1), "bold" if point.model is run.best else "normal")
        )
    if chart.teacher:
        model = chart.teacher.model
        text = f"{model.name}  {perplexity_text(chart.teacher.y)}  ({count_text(model.params)})"
        labels.append(_Wanted(*_pixels(ax, chart.teacher), text, _TEACHER, (-1, 1), "bold"))
    return labels


def _draw_labels(ax: Axes, chart: Chart, run: RunRecords) -> None:
    """Write the labels of the teacher, winners and baselines where they cover nothing."""
    wanted = [*_draw_baselines(ax, chart), *_model_labels(ax, chart, run)]
    style: dict[str, Any] = {"fontsize": 11, "va": "bottom", "ha": "left", "zorder": 7, "transform": None}
    # Names are shown as they are: a dollar sign in one starts no formula.
    texts = [ax.text(0, 0, w.text, color=w.color, weight=w.weight, parse_math=False, **style) for w in wanted]
    sizes = [text.get_window_extent() for text in texts]
    frame = ax.get_window_extent()
    points = [_pixels(ax, point) for point in (*chart.candidates, *chart.fitted)] + [(w.x, w.y) for w in wanted]
    points += _along([_pixels(ax, point) for point in chart.front])
    if chart.teacher:
        level = _pixels(ax, chart.teacher)[1]
        points += [(float(x), level) for x in range(int(frame.x0), int(frame.x1), _LINE_STEP_PIXELS)]
    labels = [Label(w.x, w.y, size.width, size.height, w.prefer) for w, size in zip(wanted, sizes, strict=True)]
    boxes = place_labels(labels, Box(frame.x0, frame.y0, frame.x1, frame.y1), points=points)
    for label, text, box in zip(wanted, texts, boxes, strict=True):
        text.set_position((box.left, box.bottom))
        near = min(max(label.x, box.left), box.right), min(max(label.y, box.bottom), box.top)
        if abs(near[0] - label.x) + abs(near[1] - label.y) > _LEADER_PIXELS:
            leader: dict[str, Any] = {"transform": None, "linewidth": 0.8, "alpha": 0.7, "zorder": 3}
            ax.plot([label.x, near[0]], [label.y, near[1]], color=label.color, **leader)


def _draw_legend(ax: Axes) -> None:
    style: dict[str, Any]
    handles, names = ax.get_legend_handles_labels()
    if not handles:
        style = {"transform": ax.transAxes, "ha": "center", "color": _MUTED, "fontsize": 14}
        ax.text(0.5, 0.5, "no candidate has been measured yet", **style)
        return
    # The front first, as it is what the picture is about; the points behind it last.
    ranks = [next((i for i, key in enumerate(_LEGEND_ORDER) if name.startswith(key)), 9) for name in names]
    order = sorted(range(len(names)), key=lambda index: ranks[index])
    style = {"loc": "upper left", "bbox_to_anchor": (0.022, 0.93), "ncols": 6, "frameon": False, "fontsize": 11}
    style |= {"labelcolor": _MUTED, "handletextpad": 0.5, "columnspacing": 1.6}
    ax.get_figure(root=True).legend([handles[i] for i in order], [names[i] for i in order], **style)  # type: ignore[union-attr]


def draw_front(run: RunRecords) -> bytes:
    """Draw perplexity against size as a PNG of 1200 × 750 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = chart_data(run)
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.075, 0.095, 0.9, 0.75))
    _style(ax, chart)
    _draw_points(ax, chart)
    _draw_labels(ax, chart, run)
    teacher = f" of {run.teacher.name}" if run.teacher else ""
    state = "" if run.finished else " (unfinished run)"
    figure.text(0.03, 0.945, f"Sub-networks{teacher}{state}", fontsize=17, weight="bold", color=_INK, parse_math=False)
    _draw_legend(ax)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def write_front_png(run: RunRecords, path: Path) -> None:
    """Draw the front into a file.

    Raises:
        UserError: The file cannot be written.
    """
    write_bytes(path, draw_front(run))
