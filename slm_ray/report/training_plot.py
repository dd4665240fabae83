"""Draws the picture of training. What is in it comes from :mod:`slm_ray.report.training_chart`."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from slm_ray.report.labels import Box, Label, place_labels
from slm_ray.report.training import TrainingRecords
from slm_ray.report.training_chart import CurvePoint, TrainingChart, TrainingCurve, mark_labels, training_chart
from slm_ray.report.wording import perplexity_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKED_POINTS = 60  # with more, the marks of a line run into each other
_SIZE_INCHES, _LEGEND_ROW_INCHES, _DPI = (15.0, 7.0), 0.24, 100
_INK, _MUTED, _GRID = "#1f2328", "#59636e", "#e6e9ec"
# Okabe and Ito's colours, told apart with any kind of colour vision; line styles differ as well.
BEST_COLOR = "#0072b2"
OTHER_COLORS = ("#d55e00", "#cc79a7", "#009e73", "#e69f00", "#7a5195")
_STYLES = ((0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)), (0, (1, 1)), (0, (9, 3)))


def _look_of(chart: TrainingChart, curve: TrainingCurve) -> tuple[str, Any]:
    """Colour and line style: solid for the model that the picture is about."""
    if curve.is_best:
        return BEST_COLOR, "-"
    index = [other for other in chart.curves if not other.is_best].index(curve)
    return OTHER_COLORS[index % len(OTHER_COLORS)], _STYLES[(index + index // len(OTHER_COLORS)) % len(_STYLES)]


def _style(ax: Axes, chart: TrainingChart, quantity: str) -> None:
    axis = chart.tokens if quantity == "tokens" else chart.flops
    ax.set_yscale("log")
    ax.set_xlim(axis.low, axis.high)
    ax.set_ylim(chart.y.low, chart.y.high)
    ax.set_xticks([value for value, _ in axis.ticks], [label for _, label in axis.ticks])
    ax.set_yticks([value for value, _ in chart.y.ticks], [label for _, label in chart.y.ticks])
    ax.minorticks_off()
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=11, colors=_MUTED, pad=6)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#b4bcc4")
    name = "Tokens trained on" if quantity == "tokens" else "FLOPs in all: own, teacher's, search's, capture's"
    ax.set_xlabel(name, fontsize=12, color=_INK, labelpad=8)


def _at(point: CurvePoint, quantity: str) -> float:
    return point.tokens if quantity == "tokens" else point.flops


def _draw_curves(ax: Axes, chart: TrainingChart, quantity: str) -> None:
    style: dict[str, Any]
    if chart.level:
        style = {"color": _INK, "linewidth": 1.2, "linestyle": (0, (5, 4)), "alpha": 0.7, "zorder": 2}
        ax.axhline(chart.level[1], label=f"{chart.level[0]}  {perplexity_text(chart.level[1])}", **style)
    for curve in chart.curves:
        color, line_style = _look_of(chart, curve)
        xs = [_at(point, quantity) for point in curve.points]
        ys = [point.perplexity for point in curve.points]
        style = {"color": color, "linewidth": 2.4 if curve.is_best else 1.8}
        style |= {"marker": "o", "markersize": 4.5} if len(curve.points) <= _MARKED_POINTS else {}
        style |= {"linestyle": line_style, "zorder": 5 if curve.is_best else 4}
        ax.plot(xs, ys, label=f"{curve.model.name}  {perplexity_text(ys[-1])}", **style)


def _draw_marks(ax: Axes, chart: TrainingChart, quantity: str) -> None:
    """A ring where the best model was as good as another ended, a thin line to that end, and how much less it took."""
    style: dict[str, Any]
    for mark in chart.marks:
        reference = chart.curves[mark.reference]
        color, _ = _look_of(chart, reference)
        x, end = _at(mark.at, quantity), _at(reference.points[-1], quantity)
        style = {"color": color, "linewidth": 1.0, "linestyle": (0, (1, 2)), "zorder": 3}
        ax.plot([x, end], [mark.perplexity, mark.perplexity], **style)
        style = {"s": 120, "facecolor": "none", "edgecolor": color, "linewidth": 2.0, "zorder": 6, "clip_on": False}
        ax.scatter([x], [mark.at.perplexity], **style)
    _draw_labels(ax, chart, quantity)


def _draw_labels(ax: Axes, chart: TrainingChart, quantity: str) -> None:
    """Write beside the rings, where the text covers little."""
    wanted = mark_labels(chart, quantity)
    if not wanted:
        return
    style: dict[str, Any] = {"fontsize": 10.5, "va": "bottom", "ha": "left", "zorder": 7, "transform": None}
    texts = [ax.text(0, 0, text, color=_INK, parse_math=False, **style) for _, text in wanted]

    def pixels(point: CurvePoint) -> tuple[float, float]:
        x, y = ax.transData.transform((_at(point, quantity), point.perplexity))
        return float(x), float(y)

    sizes = [text.get_window_extent() for text in texts]
    labels = [Label(*pixels(at), size.width, size.height) for (at, _), size in zip(wanted, sizes, strict=True)]
    frame = ax.get_window_extent()
    points = [pixels(point) for curve in chart.curves for point in curve.points]
    boxes = place_labels(labels, Box(frame.x0, frame.y0, frame.x1, frame.y1), points=points)
    for text, box in zip(texts, boxes, strict=True):
        text.set_position((box.left, box.bottom))


def draw_training(run: TrainingRecords, *, marked: bool = True) -> bytes:
    """Draw validation perplexity against tokens and against FLOPs as a PNG of 1500 × 700 pixels, more for many names.

    Args:
        run: The records.
        marked: With the places where the best model was as good as another ended.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = training_chart(run, marked=marked)
    columns = 4 if len(chart.curves) <= 8 else 3
    extra = _LEGEND_ROW_INCHES * max(0, -(-(len(chart.curves) + bool(chart.level)) // columns) - 2)
    width, height = _SIZE_INCHES[0], _SIZE_INCHES[1] + extra
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    share = _SIZE_INCHES[1] / height  # the pictures keep their size, and the names get what is added
    axes = [figure.add_axes((left, 0.105 * share, 0.435, 0.745 * share)) for left in (0.055, 0.545)]
    for ax, quantity in zip(axes, ("tokens", "flops"), strict=True):
        _style(ax, chart, quantity)
        _draw_curves(ax, chart, quantity)
        _draw_marks(ax, chart, quantity)
    axes[0].set_ylabel("Perplexity, held-out text (log scale)", fontsize=12, color=_INK, labelpad=8)
    state = "" if run.finished else " (unfinished run)"
    figure.text(0.02, 1 - 0.065 * share, f"Training{state}", fontsize=17, weight="bold", color=_INK)
    handles, names = axes[0].get_legend_handles_labels()
    style: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.014, 1 - 0.075 * share)}
    style |= {"ncols": columns, "frameon": False}
    if handles:
        legend = figure.legend(handles, names, fontsize=11, labelcolor=_MUTED, **style)
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        empty: dict[str, Any] = {"transform": axes[0].transAxes, "ha": "center", "color": _MUTED, "fontsize": 14}
        axes[0].text(0.5, 0.5, "nothing has been measured yet", **empty)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
