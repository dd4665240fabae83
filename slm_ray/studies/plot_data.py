"""What a sweep's plots show, as plain numbers made from its table; :mod:`slm_ray.studies.plots` draws them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm_ray.config.errors import UserError, nearest
from slm_ray.config.units import parse_number
from slm_ray.studies.stages import normal_name
from slm_ray.studies.table import Row, columns_of

KEYS = (
    "name", "title", "x", "y", "group", "log", "where", "curves", "analysis", "by", "metric", "flops", "params",
    "tokens", "loss", "resamples",
)  # fmt: skip
ANALYSES = ("scaling", "best")


@dataclass(frozen=True)
class PlotData:
    """A plot; rows have series, x, y, style (``points``, ``line``, ``fit`` or ``marks``), and some low and high."""

    name: str  # Its file's name
    title: str
    x_label: str
    y_label: str
    log_x: bool
    log_y: bool
    rows: tuple[Row, ...]
    categories: tuple[str, ...] = ()  # Names of the places along, where x is no number


@dataclass
class Findings:
    """What came of a sweep's plots and analyses: pictures, lines for people, and figures."""

    plots: list[PlotData] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def check_plots(plots: Any, problems: list[str]) -> None:
    """Check the section ``plots``; what is wrong goes to ``problems``."""
    for number, plot in enumerate(plots or ()):
        path = f"plots[{number}]"
        if not isinstance(plot, Mapping):
            problems.append(f"{path}: must be like {{x: tokens, y: loss, group: optimizer}}, got {plot!r}")
            continue
        problems += [f"{path}.{key}: no such entry; {nearest(str(key), KEYS)}" for key in plot if key not in KEYS]
        analysis = plot.get("analysis")
        if analysis is not None and analysis not in ANALYSES:
            problems.append(f"{path}.analysis: no analysis '{analysis}'; {nearest(str(analysis), ANALYSES)}")
        if analysis is None and not (plot.get("x") and plot.get("y")):
            problems.append(f"{path}: name the columns x and y, or an analysis")


def column(name: str, rows: Sequence[Row]) -> str:
    """A column of the table by the name that a plot gives it."""
    known = columns_of(rows)
    for one in (name, normal_name(name)):
        if one in known:
            return one
    raise UserError(f"the table has no column '{name}': {nearest(name, known)}")


def _matches(row: Row, where: Mapping[str, Any], rows: Sequence[Row]) -> bool:
    return all(row.get(column(str(name), rows)) in (value if isinstance(value, list) else [value])
               for name, value in where.items())  # fmt: skip


def as_number(value: Any) -> float | None:
    """A value as a number; ``20M`` is one, and what is none is None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    try:
        return parse_number(str(value))
    except UserError:
        return None


def make_plot(name: str, spec: Mapping[str, Any], rows: Sequence[Row]) -> PlotData:
    """One plot of columns of the table.

    Rows of one group at the same place are averaged, with the least and greatest beside the mean.
    """
    if not rows:
        raise UserError("there are no finished points to show")
    x, y = column(str(spec["x"]), rows), column(str(spec["y"]), rows)
    groups = spec.get("group") or []
    keys = [column(str(one), rows) for one in (groups if isinstance(groups, list) else [groups])]
    shown = [row for row in rows if row.get(x) is not None and as_number(row.get(y)) is not None
             and _matches(row, spec.get("where") or {}, rows)]  # fmt: skip
    if not shown:
        raise UserError(f"no finished point has both {x} and {y}")
    is_number = all(as_number(row[x]) is not None for row in shown)
    categories = () if is_number else tuple(dict.fromkeys(str(row[x]) for row in shown))
    gathered: dict[str, dict[Any, list[float]]] = {}
    for row in shown:
        group = ", ".join(_shown(row.get(key)) for key in keys) or y
        place = as_number(row[x]) if is_number else str(row[x])
        gathered.setdefault(group, {}).setdefault(place, []).append(as_number(row[y]) or 0.0)
    log, found, style = spec.get("log") or [], list[Row](), "line" if spec.get("curves") else "points"
    for group, places in gathered.items():
        several = any(len(values) > 1 for values in places.values())
        for place in sorted(places, key=None if is_number else categories.index):
            values = places[place]
            ends = {"low": min(values), "high": max(values)} if several else {}
            found.append({"series": group, "x": place, "y": statistics.fmean(values), "style": style, **ends})
    positive_x = is_number and all(row["x"] > 0 for row in found)
    positive_y = all(row["y"] > 0 for row in found)
    return PlotData(
        name, str(spec.get("title") or f"{y} by {x}"), _label(x), _label(y), "x" in log and positive_x,
        "y" in log and positive_y, tuple(found), categories,
    )  # fmt: skip


def _shown(value: Any) -> str:
    """A value as tables have it."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


_UNITS = {
    "loss": "held-out loss (nats per token)", "perplexity": "held-out perplexity", "tokens": "tokens trained on",
    "params": "parameters", "flops": "FLOPs, search and teacher counted", "tokens_per_second": "tokens per second",
    "memory_bytes": "memory (bytes)", "bits_per_byte": "bits per byte", "learning_rate": "peak learning rate",
}  # fmt: skip


def _label(name: str) -> str:
    return _UNITS.get(name.rpartition(".")[2], name.replace("_", " "))


def best_lines(spec: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The best row of every group, groups ordered by it; each with how many rows it was chosen from."""
    if not rows:
        raise UserError("there are no finished points to choose from")
    metric = column(str(spec.get("metric") or "loss"), rows)
    by = [column(str(name), rows) for name in (spec.get("by") or [])]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if as_number(row.get(metric)) is not None:
            groups.setdefault(tuple(str(row.get(name)) for name in by), []).append(row)
    if not groups:
        raise UserError(f"no finished point has {metric}")
    options = [{name: None for name in list(row)[2 : list(row).index("status")]} for row in rows]
    varied = [name for name in columns_of(options) if name not in (*by, "group")]
    best = {key: min(found, key=lambda row: float(row[metric])) for key, found in groups.items()}
    lines = [f"best {metric} of every {', '.join(by) or 'sweep'}:"]
    for key in sorted(best, key=lambda one: float(best[one][metric])):
        row = best[key]
        chosen = ", ".join(f"{name}={row[name]}" for name in varied if row.get(name) is not None)
        title = ", ".join(key) or "all"
        lines.append(
            f"  {title}: {float(row[metric]):.4g} at {chosen or 'its only setting'}, of {len(groups[key])} points"
        )
    return lines
