"""Draws plots. What is in them comes from :mod:`slm_ray.studies.plot_data`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.units import format_count
from slm_ray.records.files import write_bytes
from slm_ray.studies.plot_data import PlotData, Series

_SIZE_INCHES, _DPI = (10.0, 6.0), 100
# Okabe and Ito's colours, told apart with any kind of colour vision; marks differ as well.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#1f2328")
_MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.")  # names beyond the colours have another kind of line
_INK, _MUTED, _GRID = "#1f2328", "#59636e", "#e6e9ec"
_MOST_INSIDE = 6  # names in a legend within the axes; more would cover the lines, and stand beside them
_MOST_NAMED = 32


def draw(data: PlotData, folder: Path) -> Path:
    """Draw a plot as ``NAME.png``.

    Args:
        data: What it shows.
        folder: Where it goes.

    Returns:
        The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    names = list(dict.fromkeys(one.name for one in data.series))
    marked = {one.name for one in data.series if one.style == "marks"}
    for one in data.series:
        place = names.index(one.name)
        is_named = one.name not in marked  # a fit beside its marks needs no second entry in the legend
        look = _Look(
            _COLORS[place % len(_COLORS)], _MARKS[place % len(_MARKS)], _LINES[place // len(_COLORS) % len(_LINES)]
        )
        _draw_series(ax, one, look, is_named=is_named)
    _style(ax, data)
    if 1 < len(names) <= _MOST_NAMED or (len(names) == 1 and names[0] != data.y_label):
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)} if len(names) > _MOST_INSIDE else {}
        several = data.legend if "," in data.legend else None  # one value speaks for itself
        ax.legend(title=several, frameon=False, fontsize=10, labelcolor=_INK, alignment="left", **beside)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path = folder / f"{data.name}.png"
    write_bytes(path, picture.getvalue())
    return path


@dataclass(frozen=True)
class _Look:
    color: str
    mark: str
    line: str


def _draw_series(ax: Any, one: Series, look: _Look, *, is_named: bool) -> None:
    color, mark = look.color, look.mark
    if one.lows and one.style != "points":
        ax.fill_between(one.xs, one.lows, one.highs, color=color, alpha=0.15, linewidth=0)
    elif one.lows:
        below = [max(0.0, mean - low) for mean, low in zip(one.ys, one.lows, strict=True)]
        above = [max(0.0, high - mean) for mean, high in zip(one.ys, one.highs, strict=True)]
        ax.errorbar(one.xs, one.ys, yerr=[below, above], fmt="none", ecolor=color, capsize=3, linewidth=1)
    if one.style == "marks":
        ax.plot(one.xs, one.ys, linestyle="none", marker=mark, markersize=7, color=color, markeredgecolor="white",
                label=one.name)  # fmt: skip
    elif one.style == "fit":
        ax.plot(one.xs, one.ys, color=color, linestyle=look.line, linewidth=1.4,
                label=one.name if is_named else None)  # fmt: skip
    else:
        marker = None if one.style == "line" else mark
        ax.plot(one.xs, one.ys, color=color, linestyle=look.line, linewidth=1.8, marker=marker, markersize=6,
                markeredgecolor="white", label=one.name)  # fmt: skip


def _style(ax: Any, data: PlotData) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    ax.set_title(data.title, fontsize=13, color=_INK, loc="left")
    ax.set_xlabel(data.x_label, fontsize=11, color=_INK)
    ax.set_ylabel(data.y_label, fontsize=11, color=_INK)
    for axis, is_log in ((ax.xaxis, data.log_x), (ax.yaxis, data.log_y)):
        if is_log:
            (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
            axis.set_minor_formatter(NullFormatter())
            low, high = axis.get_view_interval()
            if low > 0 and high < 10 * low:  # less than one power of ten has hardly a tick of its own
                axis.set_major_locator(MaxNLocator(7))
                axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if data.categories:
        ax.set_xticks(range(len(data.categories)), data.categories)
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=10, colors=_MUTED, which="both")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _short(value: float) -> str:
    if value and (abs(value) >= 1e15 or abs(value) < 1e-3):
        return f"{value:.0e}"
    return format_count(value) if abs(value) >= 1000 else f"{value:.4g}"
