"""Draws lines of points, such as the fronts of several searches, as a PNG from the data that the page draws."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from slm_ray.report.training_plot import BEST_COLOR, OTHER_COLORS

_INK, _MUTED, _GRID = "#1f2328", "#59636e", "#e6e9ec"


def draw_lines(data: Mapping[str, Any], title: str) -> bytes:
    """The first panel of some curves as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panel, y = data["panels"][0], data["y"]
    figure = Figure(figsize=(12.0, 7.0 + 0.1 * len(data["curves"])), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    for level in data["levels"]:
        label = f"{level['name']}  {level['label']}"
        ax.axhline(level["value"], color=_INK, linewidth=1.2, linestyle=(0, (5, 4)), alpha=0.7, label=label)
    for curve in data["curves"]:
        color = BEST_COLOR if curve["look"] is None else OTHER_COLORS[curve["look"] % len(OTHER_COLORS)]
        xs, ys = [p[panel["key"]] for p in curve["points"]], [p["y"] for p in curve["points"]]
        ax.plot(xs, ys, color=color, marker="o", markersize=5, linewidth=1.8, label=curve["name"])
    ax.set_yscale("log")
    ax.set_xlim(panel["axis"]["low"], panel["axis"]["high"])
    ax.set_ylim(y["low"], y["high"])
    ax.set_xticks([value for value, _ in panel["axis"]["ticks"]], [text for _, text in panel["axis"]["ticks"]])
    ax.set_yticks([value for value, _ in y["ticks"]], [text for _, text in y["ticks"]])
    ax.minorticks_off()
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=11, colors=_MUTED)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel(panel["label"], color=_INK)
    ax.set_ylabel(data["yLabel"], color=_INK)
    ax.set_title(title, fontsize=16, weight="bold", loc="left", color=_INK, parse_math=False)
    legend = figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
