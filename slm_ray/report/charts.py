"""Pictures: one Altair specification per view gives the page's interactive chart and the PNG.

What is in a picture is computed elsewhere, as rows of plain values. Colours are written as names (``@front``) that
the page and the PNG replace by those of a palette, light or dark. A row may have a ``tip``: lines for a tooltip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import groupby
from typing import Any

import altair as alt

from slm_ray.report.placing import Axis, Box, Label, along, place_labels

Row = dict[str, Any]
WIDTH = 860  # of a view in a PNG, pixels
PALETTES = {
    "light": {
        "@ink": "#1b1f24", "@muted": "#57606a", "@line": "#dfe3e8", "@grid": "#e9ecef", "@card": "#ffffff",
        "@soft": "#e6eaef", "@front": "#0072b2", "@candidate": "#8b96a3", "@budget": "#56b4e9",
        "@c0": "#d55e00", "@c1": "#b0588f", "@c2": "#00805b", "@c3": "#b87500", "@c4": "#7a5195", "@c5": "#57606a",
    },
    "dark": {
        "@ink": "#e8ebef", "@muted": "#a3adb8", "@line": "#2c333c", "@grid": "#252b33", "@card": "#171b21",
        "@soft": "#303842", "@front": "#56b4e9", "@candidate": "#98a3af", "@budget": "#56b4e9",
        "@c0": "#ff8c42", "@c1": "#e08fc0", "@c2": "#2ec79a", "@c3": "#f0b43c", "@c4": "#b894d6", "@c5": "#a3adb8",
    },
}  # fmt: skip
"""Okabe and Ito's colours, told apart with any kind of colour vision; shapes and dashes differ as well."""

SHAPES = ("square", "triangle-up", "diamond", "triangle-down", "cross")
_DASHES = ([9, 4], [3, 3], [9, 4, 2, 4], [2, 2], [14, 4])
STAR = (
    "M0,-1L0.235,-0.324L0.951,-0.309L0.38,0.124L0.588,0.809L0,0.4L-0.588,0.809L-0.38,0.124L-0.951,-0.309L-0.235,-0.324Z"
)
_COUNT = "abs(datum.value) >= 1000 ? replace(format(datum.value, '.3~s'), 'k', 'K') : format(datum.value, '~g')"
_TITLE = '<text x="24" y="36" font-family="sans-serif" font-size="19" font-weight="bold" fill="#1b1f24">{}</text>'
CONFIG: dict[str, Any] = {
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "@muted", "titleColor": "@muted", "gridColor": "@grid", "domainColor": "@line", "ticks": False,
        "labelFontSize": 12, "titleFontSize": 12.5, "titleFontWeight": "normal", "labelPadding": 7, "titlePadding": 8,
        "labelLimit": 230,
    },
    "axisY": {"domain": False},
    "legend": {
        "orient": "top", "title": None, "labelColor": "@muted", "labelFontSize": 12.5, "labelLimit": 330,
        "symbolSize": 70, "symbolOpacity": 1, "columnPadding": 18, "rowPadding": 4,
    },
    "title": {"color": "@muted", "fontSize": 12.5, "fontWeight": "normal", "anchor": "start", "offset": 8},
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """One chart with its data."""

    chart: Any  # Altair's chart, without a width
    rows: Mapping[str, Sequence[Row]]  # Its data by name
    height: int = 380  # In pixels
    title: str = ""  # Above it on the page
    note: str = ""  # Below the title

    def spec(self, width: int | str) -> dict[str, Any]:
        """The Vega-Lite specification, its colours still as names."""
        found: dict[str, Any] = self.chart.properties(width=width, height=self.height).to_dict(validate=False)
        found["datasets"] = {name: list(rows) for name, rows in self.rows.items()}
        found["autosize"] = {"type": "fit-x", "contains": "padding"} if width == "container" else "pad"
        return found


@dataclass(frozen=True)
class Picture:
    """Views that belong together."""

    views: tuple[View, ...]
    small: bool = False  # they stand side by side where there is room

    def page_data(self) -> dict[str, Any]:
        """What the page's script draws: ``views``, and the ``rows`` that they name, each once."""
        rows: dict[str, Sequence[Row]] = {}
        views = [view.spec("container") for view in self.views]
        for number, view in enumerate(self.views):
            for name, found in view.rows.items():
                key = next((known for known, other in rows.items() if other is found), f"{name}{number}")
                rows[key] = found
                views[number]["datasets"][name] = key
        return {"views": views, "rows": rows}


def with_palette(value: Any, palette: Mapping[str, str]) -> Any:
    """A specification with its colours in place; its data is left as it is."""
    if isinstance(value, dict):
        return {key: inner if key == "datasets" else with_palette(inner, palette) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_palette(inner, palette) for inner in value]
    return palette.get(value, value) if isinstance(value, str) else value


def draw_png(picture: Picture, title: str, columns: int = 1) -> bytes:
    """A picture as a PNG, on white, with its title above it and so many views in a row."""
    import vl_convert

    width = WIDTH if columns == 1 else 620 if columns == 2 else 400
    parts, x, y, row_height, right = [], 20.0, 56.0, 0.0, 0.0
    for number, view in enumerate(picture.views):
        if number and number % columns == 0:
            x, y, row_height = 20.0, y + row_height + 24, 0.0
        spec = with_palette(view.spec(width) | {"config": CONFIG}, PALETTES["light"])
        if view.title or view.note:
            spec["title"] = {"text": view.title or view.note, "subtitle": [view.note] if view.title else []}
        svg = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
        size = [float(found) for found in re.findall(r'<svg[^>]*? width="([\d.]+)" height="([\d.]+)"', svg)[0]]
        svg = re.sub(r'(\bid="|url\(#)', rf"\1v{number}-", svg)
        parts.append(svg.replace("<svg", f'<svg x="{x}" y="{y}"', 1))
        x, row_height, right = x + size[0] + 24, max(row_height, size[1]), max(right, x + size[0])
    wide, high = max(right + 20, 480), y + row_height + 20
    text = _TITLE.format(escape(title))
    whole = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{wide}" '
        f'height="{high}"><rect width="100%" height="100%" fill="#ffffff"/>{text}{"".join(parts)}</svg>'
    )
    return bytes(vl_convert.svg_to_png(whole, scale=1.25))


@dataclass(frozen=True)
class Looks:
    """Colour, shape and dashes of every series, the same in all pictures."""

    names: tuple[str, ...]  # Of the series, in order
    first: str | None = None  # The one that a picture is about
    teachers: frozenset[str] = field(default_factory=frozenset)  # The teachers among them
    legend_offset: int = 32  # Room between legend and picture, for the title of the vertical axis: pixels

    def _ranges(self) -> tuple[list[str], list[str], list[list[int]]]:
        colors, shapes, dashes, count = [], [], [], 0
        for name in self.names:
            if name == self.first or name in self.teachers:
                colors.append("@front" if name == self.first else "@ink")
                shapes.append("circle" if name == self.first else STAR)
                dashes.append([1, 0] if name == self.first else [5, 4])
            else:
                colors.append(f"@c{count % 5}")
                shapes.append(SHAPES[count % 5])
                dashes.append(_DASHES[(count + count // 5) % 5])
                count += 1
        return colors, shapes, dashes

    def _legend(self) -> Any:
        if len(self.names) < 2:
            return None
        columns = alt.ExprRef(f"max(1, floor(width / {7 * min(max(map(len, self.names)), 46) + 50}))")
        return alt.Legend(columns=columns, symbolLimit=60, offset=self.legend_offset)

    def _channel(self, channel: Any, place: int, legend: bool) -> Any:
        scale = alt.Scale(domain=list(self.names), range=self._ranges()[place])
        return channel("series:N", scale=scale, legend=self._legend() if legend else None)

    def color(self, *, legend: bool = True) -> alt.Color:
        """The colour channel."""
        return self._channel(alt.Color, 0, legend)

    def stroke(self) -> alt.Stroke:
        """The same for outlines, without a legend of its own."""
        return self._channel(alt.Stroke, 0, False)

    def shape(self, *, legend: bool = True) -> alt.Shape:
        """The shape channel."""
        return self._channel(alt.Shape, 1, legend)

    def dash(self, *, legend: bool = True) -> alt.StrokeDash:
        """The channel of dashes."""
        return self._channel(alt.StrokeDash, 2, legend)


def data(name: str) -> Any:
    """A chart on named rows."""
    return alt.Chart(alt.NamedData(name=name))


def x_of(axis: Axis, name: str = "x", *, grid: bool = False) -> alt.X:
    """The horizontal channel; a scale's labels are counts such as 60M."""
    return alt.X(f"{name}:Q", title=axis.title, scale=_scale(axis), axis=_ticks(axis, grid=grid))


def y_of(axis: Axis, name: str = "y") -> alt.Y:
    """The vertical channel; its title stands above the axis, to be read without turning one's head."""
    title = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": 0, "titleY": -14}
    return alt.Y(f"{name}:Q", title=axis.title, scale=_scale(axis), axis=_ticks(axis, **title))


def _scale(axis: Axis) -> alt.Scale:
    return alt.Scale(type="log" if axis.log else "linear", domain=[axis.low, axis.high], nice=False)


def _ticks(axis: Axis, **more: Any) -> alt.Axis:
    values = {"values": list(axis.ticks)} if axis.ticks else {"tickCount": 6}
    return alt.Axis(labelExpr=_COUNT, labelOverlap=True, **values, **more)


def tips() -> alt.Tooltip:
    """The tooltip channel."""
    return alt.Tooltip("tip:N")


def labels_layer(
    labels: Sequence[Label], x: Axis, y: Axis, height: int, points: Sequence[tuple[float, float]] = (),
    lines: Iterable[Sequence[tuple[float, float]]] = (),
) -> tuple[Any, list[Row]]:  # fmt: skip
    """A layer of texts, placed where they cover few points and lines, and its rows; all are in the axes' units.

    On a narrow screen only the important ones are shown.
    """

    def pixels(across: float, up: float) -> tuple[float, float]:
        return WIDTH * x.share(across), height * y.share(up)

    placed = [replace(label, x=at, y=up) for label in labels for at, up in [pixels(label.x, label.y)]]
    covered = [pixels(*point) for point in points[:: max(1, len(points) // 800)]]
    covered += [point for line in lines for point in along([pixels(*point) for point in line])]
    rows = [
        {
            "x": label.x, "y": label.y, "text": label.text, "strong": label.strong,
            "dx": round(box.left - at.x, 1), "dy": round(at.y - (box.bottom + box.top) / 2, 1),
        }
        for label, at, box in zip(labels, placed, place_labels(placed, Box(0, 0, WIDTH, height), covered), strict=True)
    ]  # fmt: skip
    look: dict[str, Any] = {
        "align": "left", "baseline": "middle", "fontSize": 12.5, "color": "@ink",
        "dx": alt.ExprRef("datum.dx"), "dy": alt.ExprRef("datum.dy"),
        "fontWeight": alt.ExprRef("datum.strong ? 'bold' : 'normal'"),
        "opacity": alt.ExprRef("width > 540 || datum.strong ? 1 : 0"),
    }  # fmt: skip
    layer = data("labels").mark_text(**look).encode(x=x_of(x), y=y_of(y), text="text:N")
    return layer, rows


def lines(
    rows: Sequence[Row], looks: Looks, x: Axis, y: Axis, *, levels: Sequence[tuple[str, float]] = (),
    marks: Sequence[Row] = (), labels: Sequence[Label] = (), step: bool = False, height: int = 400,
    title: str = "", note: str = "", legend: bool = True, across: str = "x",
) -> View:  # fmt: skip
    """Lines of points."""
    chosen = alt.selection_point(name="chosen", fields=["series"], bind="legend")
    color = looks.color(legend=legend)
    bright = alt.when(chosen).then(alt.value(1.0)).otherwise(alt.value(0.13))
    order = "step-after" if step else "linear"
    base = data("rows").encode(x=x_of(x, across), y=y_of(y), color=color)
    layers = []
    found: dict[str, Sequence[Row]] = {"rows": rows}
    if any("low" in row for row in rows):
        layers.append(base.mark_area(opacity=0.13, interpolate=order).encode(y=y_of(y, "low"), y2="high:Q"))
    if levels:
        found["levels"] = [{"y": value, "text": f"{name}  {value:.3g}", "x": x.low} for name, value in levels]
        flat = data("levels").encode(y=y_of(y))
        layers.append(flat.mark_rule(strokeDash=[5, 4], color="@ink", opacity=0.6))
        layers.append(flat.mark_text(align="left", dx=6, dy=-7, color="@muted", fontSize=12).encode(
            x=alt.value(0), text="text:N"))  # fmt: skip
    if marks:
        found["marks"] = marks
        ring = data("marks").encode(x=x_of(x), color=color, opacity=bright)
        layers.append(ring.mark_rule(strokeDash=[1, 4], strokeWidth=1.4).encode(x2="x2:Q", y=y_of(y, "goal")))
    dash = looks.dash(legend=legend)
    layers.append(base.mark_line(interpolate=order, strokeWidth=2.2).encode(strokeDash=dash, opacity=bright))
    size = 38 if len(rows) <= 80 * max(len(looks.names), 1) else 9
    points = base.transform_filter("isValid(datum.tip)").mark_point(filled=True, size=size)
    dots = points.encode(opacity=bright, tooltip=tips())
    layers.append(dots.add_params(chosen))
    if marks:
        layers.append(ring.mark_point(size=230, strokeWidth=2.2, filled=False).encode(y=y_of(y)))
    if labels:
        curves = [[(row[across], row["y"]) for row in mine] for _, mine in groupby(rows, lambda row: row["series"])]
        texts, found["labels"] = labels_layer(labels, x, y, height, (), curves)
        layers.append(texts)
    return View(alt.layer(*layers), found, height, title, note)


def cut_at_top(rows: Sequence[Row], across: Sequence[str], y: Axis) -> list[Row]:
    """Rows of lines within a logarithmic axis, and where a line crosses its top a row without a tooltip."""
    found: list[Row] = []
    last: Row | None = None
    for row in rows:
        if last and last["series"] == row["series"] and (last["y"] > y.high) != (row["y"] > y.high):
            share = math.log(y.high / last["y"]) / math.log(row["y"] / last["y"])
            crossing = {name: last[name] + share * (row[name] - last[name]) for name in across}
            found.append({"series": row["series"], **crossing, **dict.fromkeys(("y", "low", "high"), y.high)})
        if row["y"] <= y.high:
            found.append({**row, "high": min(row["high"], y.high)} if "high" in row else row)
        last = row
    return found


def scatter(rows: Sequence[Row], x: Axis, y: Axis, *, title: str = "", note: str = "", height: int = 250,
            looks: Looks | None = None) -> View:  # fmt: skip
    """Points: ``x``, ``y`` and, with looks, ``series``."""
    base = data("rows").mark_point(filled=True, size=60, opacity=0.8, color="@front")
    dots = base.encode(x=x_of(x), y=y_of(y), tooltip=tips())
    return View(dots.encode(color=looks.color(), shape=looks.shape()) if looks else dots, {"rows": rows}, height, title,
                note)  # fmt: skip


def intervals(rows: Sequence[Row], looks: Looks, x: Axis, *, chances: Sequence[Row] = (), zero: bool = False) -> View:
    """Values with their intervals, a band for each group and a row in it for each series."""
    looks = replace(looks, legend_offset=10)
    names = [name for name in looks.names if any(row["series"] == name for row in rows)]
    single = len({row["group"] for row in rows}) == len(rows)
    group = alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelColor="@ink", grid=False),
                  scale=alt.Scale(paddingInner=0.25))  # fmt: skip
    offset = {} if single else {"yOffset": alt.YOffset("series:N", sort=names)}
    layers = []
    if zero:
        layers.append(data("zero").mark_rule(color="@ink").encode(x=x_of(x, "zero").title(None)))
    if chances:
        tick = {"strokeDash": [3, 3], "color": "@ink", "opacity": 0.75, "thickness": 1.4}
        layers.append(
            data("chances")
            .mark_tick(bandSize=20 + 13 * len(names), **tick)
            .encode(x=x_of(x, "value").title(None), y=group)
        )
    color, shape = looks.color(legend=not single), looks.shape(legend=not single)
    base = data("rows").encode(y=group, color=color, **offset)
    across = x_of(x, "low", grid=True).title(None)
    layers.append(base.mark_rule(strokeWidth=1.8).encode(x=across, x2="high:Q"))
    dots = base.mark_point(filled=True, size=70, strokeWidth=1.6, opacity=1).encode(
        x=x_of(x, "value").title(None), shape=shape, tooltip=tips(),
        stroke=looks.stroke(),
        color=alt.when("datum.hollow").then(alt.value("@card")).otherwise(color),
    )  # fmt: skip
    layers.append(dots)
    found: dict[str, Sequence[Row]] = {"rows": rows}
    found |= ({"chances": chances} if chances else {}) | ({"zero": [{"zero": 0}]} if zero else {})
    band = 30 if single else 15 * len(names) + 10
    return View(alt.layer(*layers), found, band * len({row["group"] for row in rows}), x.title)
