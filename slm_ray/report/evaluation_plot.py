"""Draws an evaluation as one PNG. What is in it comes from :mod:`slm_ray.report.evaluation_chart`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from slm_ray.report.evaluation_chart import (
    Intervals,
    Look,
    intervals_axis,
    looks,
    scatter_data,
    task_intervals,
    text_intervals,
)
from slm_ray.report.evaluation_records import EvaluationRecords
from slm_ray.report.evaluation_tables import ends_of, full_name
from slm_ray.report.training_plot import BEST_COLOR, OTHER_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _DPI = "#1f2328", "#59636e", "#e6e9ec", 100
_MARKERS = ("s", "^", "D", "v", "P")
_ROW_INCHES, _GROUP_INCHES, _LEAST_INCHES, _WIDE_INCHES = 0.17, 0.16, 3.2, 7.5


def look_style(look: Look) -> tuple[str, str]:
    """Colour and marker of a model, as on the page."""
    if look == "first":
        return BEST_COLOR, "o"
    if look == "teacher":
        return _INK, "*"
    return OTHER_COLORS[int(look) % len(OTHER_COLORS)], _MARKERS[int(look) % len(_MARKERS)]


def _plain_axes(ax: Axes, grid: Literal["x", "both"] = "both") -> None:
    ax.grid(axis=grid, color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=10, colors=_MUTED)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _draw_intervals(ax: Axes, picture: Intervals) -> None:
    y, ticks, names = 0.0, [], []
    for group in picture.groups:
        top = y
        for row in group.rows:
            color, marker = look_style(row.look)
            low, high = ends_of(row.score)
            ax.plot([low, high], [y, y], color=color, linewidth=1.6, zorder=2)
            style: dict[str, Any] = {"marker": marker, "zorder": 3, "edgecolors": color, "linewidths": 1.2}
            style |= {"facecolors": "white" if row.hollow else color, "s": 70 if marker == "*" else 30}
            ax.scatter([row.score.value], [y], **style)
            y += 1.0
        if group.chance is not None:
            line: dict[str, Any] = {"color": _INK, "linewidth": 1.2, "linestyle": (0, (2, 2)), "zorder": 1}
            ax.plot([group.chance] * 2, [top - 0.5, y - 0.5], **line)
        ticks.append((top + y - 1) / 2)
        names.append(group.name if len(group.name) < 34 else f"{group.name[:33]}…")
        y += 1.0
    axis = intervals_axis(picture)
    ax.set_xlim(axis["low"], axis["high"])
    ax.set_xticks([value for value, _ in axis["ticks"]], [label for _, label in axis["ticks"]])
    ax.set_yticks(ticks, names, parse_math=False, color=_INK)
    ax.set_ylim(y - 0.6, -1.2)
    ax.set_xlabel(picture.label, color=_INK)
    _plain_axes(ax, "x")


def _draw_scatter(ax: Axes, data: dict[str, Any]) -> None:
    across, up = data["xs"][0], data["ys"][0]
    for point in data["points"]:
        if across not in point["values"] or up not in point["values"]:
            continue
        x, y = point["values"][across], point["values"][up]
        color, marker = look_style(point["look"])
        low, high = point["intervals"].get(up, (y, y))
        ax.plot([x, x], [low, high], color=color, linewidth=1.6)
        ax.scatter([x], [y], color=color, marker=marker, s=90 if marker == "*" else 46, zorder=3)
    for name, axis in (("x", data["axes"][across]), ("y", data["axes"][up])):
        getattr(ax, f"set_{name}scale")("log" if axis["log"] else "linear")
        getattr(ax, f"set_{name}lim")(axis["low"], axis["high"])
        getattr(ax, f"set_{name}ticks")([v for v, _ in axis["ticks"]], [t for _, t in axis["ticks"]])
        getattr(ax, f"set_{name}label")(axis["label"], color=_INK, parse_math=False)
    ax.minorticks_off()
    _plain_axes(ax)


def _height(pictures: Sequence[Intervals]) -> float:
    rows = [
        sum(len(group.rows) for group in p.groups) * _ROW_INCHES + len(p.groups) * _GROUP_INCHES for p in pictures
    ]  # fmt: skip
    return max([_LEAST_INCHES, *rows])


def draw_evaluation(run: EvaluationRecords) -> bytes:
    """Draw bits per byte, scores of tasks, and efficiency against quality, those that there are, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    pictures = [picture for picture in (text_intervals(run), task_intervals(run)) if picture.groups]
    scatter = scatter_data(run)
    columns = max(1, len(pictures) + (scatter is not None))
    shown = [model for model in run.models if model in run.measured]
    legend_rows = -(-len(shown) // (2 * columns))
    height = _height(pictures) + 1.2 + 0.28 * legend_rows
    figure = Figure(figsize=(_WIDE_INCHES * columns, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, place + 1) for place in range(columns)]
    for ax, picture in zip(axes, pictures, strict=False):
        _draw_intervals(ax, picture)
    if scatter is not None:
        _draw_scatter(axes[-1], scatter)
    if not pictures and scatter is None:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, "nothing has been measured yet", ha="center", color=_MUTED, fontsize=14)
    handles = []
    for model in shown:
        color, marker = look_style(looks(run)[model.short])
        handles.append(Line2D([], [], color=color, marker=marker, label=full_name(model)))
    if handles:
        legend = figure.legend(handles=handles, loc="outside upper left", ncols=2 * columns, frameon=False, fontsize=10)
        for text in legend.get_texts():
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
