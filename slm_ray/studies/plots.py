"""Draws a sweep's plots as PNGs. What is in them comes from :mod:`slm_ray.studies.plot_data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from slm_ray.records.files import write_bytes
from slm_ray.report.charts import Looks, Picture, View, data, draw_png, x_of, y_of
from slm_ray.report.placing import Axis, axis_over, log_ticks
from slm_ray.studies.plot_data import PlotData

_HEIGHT = 420


def draw(plot: PlotData, folder: Path) -> Path:
    """Draw a plot as ``NAME.png``."""
    path = folder / f"{plot.name}.png"
    write_bytes(path, draw_png(Picture((view_of(plot),)), plot.title))
    return path


def view_of(plot: PlotData) -> View:
    """A plot's chart: lines with marks, bands or error bars, and marks beside fitted lines."""
    names = tuple(dict.fromkeys(row["series"] for row in plot.rows))
    looks = Looks(names, first=names[0])
    heights = [row[name] for row in plot.rows for name in ("y", "low", "high") if name in row]
    y = _axis(heights, plot.y_label, plot.log_y)
    across: Any = alt.X("x:N", sort=list(plot.categories), title=plot.x_label, axis=alt.Axis(labelAngle=0))
    if not plot.categories:
        across = x_of(_axis([row["x"] for row in plot.rows], plot.x_label, plot.log_x))
    sets = {"fits": ("fit",), "rows": ("points", "line"), "dots": ("points", "marks")}
    rows = {name: [row for row in plot.rows if row["style"] in styles] for name, styles in sets.items()}
    layers = []
    color = looks.color(legend=len(names) > 1 or names[0] != plot.y_label)
    for name in ("fits", "rows"):
        base = data(name).encode(x=across, color=color)
        if any("low" in row for row in rows[name]):
            band = base.mark_area(opacity=0.15) if name == "fits" else base.mark_rule(strokeWidth=1)
            layers.append(band.encode(y=y_of(y, "low"), y2="high:Q"))
        if rows[name]:
            line = base.mark_line(strokeWidth=1.8, clip=True)
            layers.append(line.encode(y=y_of(y), strokeDash=looks.dash(legend=False)))
    if rows["dots"]:
        dots = data("dots").encode(x=across, y=y_of(y), color=color, shape=looks.shape())
        layers.append(dots.mark_point(filled=True, size=55, opacity=1))
    return View(alt.layer(*layers), rows, _HEIGHT)


def _axis(values: Sequence[float], title: str, log: bool) -> Axis:
    if not log:
        return axis_over(values, title)
    low, high = min(values) / 1.1, max(values) * 1.1
    return Axis(title, low, high, True, log_ticks(low, high) if high / low < 1e4 else ())
