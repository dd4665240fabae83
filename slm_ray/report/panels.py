"""Small pictures of points side by side: the data, and the same drawn as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.report.chart import linear_ticks, log_ticks

_LOG_SPAN = 30.0
_INK, _MUTED, _GRID, _POINT = "#1f2328", "#59636e", "#e6e9ec", "#0072b2"


@dataclass(frozen=True)
class PanelPoint:
    """A point with what a tooltip says of it."""

    x: float
    y: float
    name: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """One small picture."""

    title: str
    note: str
    x_label: str
    y_label: str
    points: tuple[PanelPoint, ...]


def figure_axis(values: Sequence[float], label: str, most: int = 5, *, zero: bool = False) -> dict[str, Any]:
    """An axis for some values: logarithmic where they span more than a factor of thirty.

    Args:
        values: What lies on it.
        label: Its name.
        most: Ticks at most.
        zero: It begins at 0 where it is linear.
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low > 0 and high / low > _LOG_SPAN:
        low, high = low / 1.3, high * 1.3
        # Whole powers alone where there are many of them.
        ticks = log_ticks(low, high) if high / low < 1e4 else _powers(low, high, most)
        return {"low": low, "high": high, "ticks": ticks, "label": f"{label} (log scale)", "log": True}
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = (0.0 if zero and low >= 0 else low - margin), high + margin
    return {"low": low, "high": high, "ticks": _fine_ticks(low, high, most), "label": label, "log": False}


def _powers(low: float, high: float, most: int) -> list[tuple[float, str]]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / most))
    return [(10.0**power, f"1e{power}") for power in range(first, last + 1, step)]


def _fine_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Linear ticks with as many decimals as tell them apart."""
    ticks = linear_ticks(low, high, most)
    if max(abs(low), abs(high)) >= 1e4 or len({label for _, label in ticks}) < len(ticks):
        large = max(abs(low), abs(high)) >= 1e4
        return list(ticks) if large else [(value, f"{value:.6g}") for value, _ in ticks]
    return [(value, f"{value:g}") for value, _ in ticks]


def panels_data(panels: Sequence[Panel]) -> dict[str, Any]:
    """What the page's script draws."""
    return {
        "panels": [
            {
                "title": panel.title, "note": panel.note,
                "x": figure_axis([point.x for point in panel.points], panel.x_label),
                "y": figure_axis([point.y for point in panel.points], panel.y_label),
                "points": [[point.x, point.y, point.name, point.facts] for point in panel.points],
            }
            for panel in panels
        ]
    }  # fmt: skip


def draw_panels(panels: Sequence[Panel], title: str) -> bytes:
    """The panels as a PNG, three in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across, down = min(3, max(1, len(panels))), max(1, math.ceil(len(panels) / 3))
    figure = Figure(figsize=(5.0 * across, 4.0 * down + 0.8), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=16, weight="bold", color=_INK, x=0.02, ha="left", parse_math=False)
    for number, panel in enumerate(panels):
        ax = figure.add_subplot(down, across, number + 1)
        data = panels_data([panel])["panels"][0]
        ax.scatter([p.x for p in panel.points], [p.y for p in panel.points], s=34, color=_POINT, alpha=0.8, zorder=3)
        for axis, name in ((data["x"], "x"), (data["y"], "y")):
            getattr(ax, f"set_{name}scale")("log" if axis["log"] else "linear")
            getattr(ax, f"set_{name}lim")(axis["low"], axis["high"])
            getattr(ax, f"set_{name}ticks")([v for v, _ in axis["ticks"]], [t for _, t in axis["ticks"]])
            getattr(ax, f"set_{name}label")(axis["label"], color=_INK, parse_math=False)
        ax.minorticks_off()
        ax.grid(color=_GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(length=0, colors=_MUTED)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_title(f"{panel.title}\n{panel.note}", fontsize=10.5, color=_INK, loc="left", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
