"""The pictures of a search: the front, the layers of a model, progress, baselines, time, finalists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import altair as alt

from slm_ray.records.budget import QUANTITIES
from slm_ray.records.search import FrontMember, MeasuredModel, ModelShape, Trial
from slm_ray.report.charts import (
    SHAPES,
    STAR,
    WIDTH,
    Looks,
    Picture,
    Row,
    View,
    bars,
    data,
    intervals,
    labels_layer,
    lines,
    scatter,
    tips,
    x_of,
    y_of,
)
from slm_ray.report.placing import Axis, Label, axis_over, perplexity_axis
from slm_ray.report.search import SearchRun, best_name, phases
from slm_ray.report.text import NORMAL_95, count_text, perplexity_text, ratio_text, shape_text, share_text

MOST_CANDIDATES, MOSTSHAPES = 3000, 60
_HEIGHT = 470
_SIZES = ("params", "flops", "kv_bytes")
_FITTED = "weights fitted, as exported"
_T = TypeVar("_T")


def thinned(found: Sequence[_T], most: int) -> list[_T]:
    """At most so many of some items, evenly spread; the first and the last are among them."""
    if len(found) <= most:
        return list(found)
    places = sorted({round(i * (len(found) - 1) / (most - 1)) for i in range(most)}) if most > 1 else [0]
    return [found[place] for place in places]


def called(member: FrontMember) -> str:
    """A member of the front as pictures call it."""
    return member.name if member.winner is None else f"winner {member.winner} ({member.name})"


def tip_of(run: SearchRun, model: MeasuredModel | Trial, name: str) -> str:
    """What a tooltip says of a model, a line each."""
    teacher = run.teacher
    share = f", {share_text(model.params, teacher.params)} of the teacher" if teacher else ""
    found = [name, f"{count_text(model.params)} parameters{share}"]
    if isinstance(model, Trial):
        found.append(
            f"calibration perplexity {perplexity_text(model.perplexity, model.stderr)} on {model.tokens:,} tokens"
        )
        found += ["stopped early: the front beats it"] if model.decided == "dominated" else []
    else:
        after = model.fitted.after if isinstance(model, FrontMember) and model.fitted else None
        for what, on in (("held-out perplexity", model), ("with fitted weights", after)):
            if on is not None and on.held_out_perplexity is not None:
                of = teacher.held_out_perplexity if teacher and model is not teacher else None
                ratio = f", {ratio_text(on.held_out_perplexity, of)} the teacher's" if of else ""
                found.append(f"{what} {perplexity_text(on.held_out_perplexity, on.held_out_stderr)}{ratio}")
        if model.calibration_perplexity is not None:
            found.append(
                f"calibration perplexity {perplexity_text(model.calibration_perplexity, model.calibration_stderr)}"
            )
    of_layers = teacher.architecture if teacher and model is not teacher else None
    return "\n".join([*found, shape_text(model.architecture, of_layers)])


def front_axes(run: SearchRun) -> tuple[Axis, Axis]:
    """The axes of the front: a cost, and perplexity with the front and the teacher kept readable."""
    quantity = run.quantity
    models = [*run.front, *run.baselines, *([run.teacher] if run.teacher else [])]
    sizes = [model.cost[quantity] for model in models] + [trial.cost[quantity] for trial in run.candidates]
    low, high = (min(sizes), max(sizes)) if sizes else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.1 * high or 1.0
    name = QUANTITIES[quantity]
    core = [value for m in run.front for value in (m.perplexity, m.final.perplexity) if value]
    core += [run.teacher.perplexity] if run.teacher and run.teacher.perplexity else []
    others = [model.perplexity for model in run.baselines if model.perplexity]
    others += [trial.perplexity for trial in run.candidates if trial.perplexity]
    text = "held-out" if any(m.held_out_perplexity is not None for m in run.front) else "calibration"
    y = perplexity_axis(core, others, f"Perplexity, {text} text (log scale)")
    return Axis(name[0].upper() + name[1:], max(low - margin, 0.0), high + margin), y


def front_picture(run: SearchRun, link: str = "front", most: int = MOST_CANDIDATES) -> tuple[Picture, str]:
    """Perplexity against size, and a sentence on the candidates that are not drawn (empty where all are)."""
    x, y = front_axes(run)
    quantity, front = run.quantity, [member for member in run.front if member.perplexity]
    on_front = {member.trial for member in front}
    measured = [trial for trial in run.candidates if trial.trial not in on_front and trial.perplexity]
    inside = [trial for trial in measured if (trial.perplexity or 0.0) <= y.high]
    drawn = thinned(inside, most)
    cloud = [
        {"series": "candidates", "x": t.cost[quantity], "y": t.perplexity, "tip": tip_of(run, t, t.name)} for t in drawn
    ]
    line: list[Row] = [{"x": member.cost[quantity], "y": member.perplexity} for member in front]
    points, labels = _front_points(run, front, x, y)
    teacher = run.teacher if run.teacher and run.teacher.perplexity else None
    if teacher:
        at, value = teacher.cost[quantity], teacher.perplexity or 1.0
        points.append(
            {"series": "teacher", "x": at, "y": value, "size": 260, "tip": tip_of(run, teacher, teacher.name)}
        )
        text = f"{teacher.name}\u2002{perplexity_text(value)}"
        labels.append(Label(WIDTH * x.share(at), _HEIGHT * y.share(value), text, (-1, 1), strong=True))
    drops: list[Row] = [
        {"x": m.cost[quantity], "y": m.perplexity, "y2": m.final.perplexity}
        for m in front
        if m.fitted and m.final.perplexity
    ]
    names = [
        "front",
        *([_FITTED] if drops else []),
        *(["candidates"] if cloud else []),
        *(["teacher"] if teacher else []),
    ]
    names += sorted(model.name for model in run.baselines)
    color, shape = _front_scales(names)
    base = {"x": x_of(x), "y": y_of(y)}
    layers = []
    zone = []
    if run.budget and run.budget.quantity == quantity and max(run.budget.low, x.low) < min(run.budget.high, x.high):
        zone = [{"low": max(run.budget.low, x.low), "high": min(run.budget.high, x.high)}]
        layers.append(
            data("zone").mark_rect(color="@budget", opacity=0.1).encode(x=x_of(x, "low"), x2="high:Q")
        )
    layers.append(data("cloud").mark_point(filled=True, size=24, opacity=0.5).encode(
        **base, color=color, shape=shape, tooltip=tips()))  # fmt: skip
    if teacher:
        layers.append(data("level").mark_rule(strokeDash=[5, 4], color="@ink", opacity=0.6).encode(y=y_of(y)))
    layers.append(data("line").mark_line(color="@front", strokeWidth=2).encode(**base))
    layers.append(data("drops").mark_rule(color="@front", strokeWidth=1.2, opacity=0.7).encode(**base, y2="y2:Q"))
    marks = data("points").mark_point(filled=True, opacity=1, stroke="@card", strokeWidth=1, cursor="pointer")
    size = alt.Size("size:Q", scale=None, legend=None)
    layers.append(marks.encode(**base, color=color, shape=shape, size=size, tooltip=tips()))
    covered = _pixels([*line, *cloud, *points], x, y)
    texts, rows = labels_layer(labels, x, y, WIDTH, _HEIGHT, covered)
    found: dict[str, Sequence[Row]] = {
        "cloud": cloud, "line": line, "drops": drops, "points": points, "labels": rows,
        "level": [{"y": teacher.perplexity}] if teacher else [],
        "zone": zone,
    }  # fmt: skip
    view = View(alt.layer(*layers, texts), found, _HEIGHT)
    return Picture((view,), link=link), _not_drawn(len(measured) - len(inside), len(inside) - len(drawn), len(inside))


def _not_drawn(above: int, left_out: int, inside: int) -> str:
    said = []
    if above == 1:
        said.append("One candidate of higher perplexity lies above the picture.")
    elif above:
        said.append(f"{above:,} candidates of higher perplexity lie above the picture.")
    if left_out:
        said.append(f"{left_out:,} of {inside:,} candidates are left out of the picture, evenly.")
    return " ".join(said)


def _pixels(rows: Sequence[Row], x: Axis, y: Axis) -> list[tuple[float, float]]:
    """Where points are, and points along the lines between the first ones, which labels should not cover."""
    every = max(1, len(rows) // 800)
    return [(WIDTH * x.share(row["x"]), _HEIGHT * y.share(row["y"])) for row in rows[::every]]


def _front_points(run: SearchRun, front: Sequence[FrontMember], x: Axis, y: Axis) -> tuple[list[Row], list[Label]]:
    """The front's members, their fitted weights and the baselines, with the labels of winners and baselines."""
    points: list[Row] = []
    labels: list[Label] = []
    quantity, crowded = run.quantity, len(front) > 50
    for member in front:
        at, value, tip = member.cost[quantity], member.perplexity or 1.0, tip_of(run, member, called(member))
        big = member.winner is not None or member is run.best
        row = {"series": "front", "x": at, "y": value, "size": 170 if big else 30 if crowded else 70, "tip": tip}
        points.append({**row, "model": called(member)})
        final = member.final.perplexity if member.fitted else None
        if final:
            points.append({**row, "series": _FITTED, "y": final, "size": 80, "model": called(member)})
        if big:
            name = f"winner {member.winner}" if member.winner is not None else best_name(run)
            text = f"{name}\u2002{perplexity_text(final or value)} ({count_text(member.params)})"
            strong = member is run.best or member == run.best
            labels.append(Label(WIDTH * x.share(at), _HEIGHT * y.share(final or value), text, (-1, -1), strong))
    rows_taken: list[tuple[float, int]] = []
    for model in sorted(run.baselines, key=lambda one: -(one.perplexity or 0.0)):
        if not model.perplexity:
            continue
        at, value, arrow = model.cost[quantity], model.perplexity, ""
        if value > y.high:
            # Those above the axis have a row each at the top edge where they would share a place.
            near = {row for place, row in rows_taken if abs(place - at) <= 0.3 * (x.high - x.low)}
            row_number = next(i for i in itertools.count() if i not in near)
            rows_taken.append((at, row_number))
            value, arrow = y.at(1 - (16 + 24 * row_number) / _HEIGHT), "↑ "
        tip = tip_of(run, model, f"baseline {model.name}")
        points.append({"series": model.name, "x": at, "y": value, "size": 90, "tip": tip, "model": model.name})
        text = f"{arrow}{model.name}\u2002{perplexity_text(model.perplexity)}"
        labels.insert(0, Label(WIDTH * x.share(at), _HEIGHT * y.share(value), text, (1, 0)))
    return points, labels


def _front_scales(names: Sequence[str]) -> tuple[alt.Color, alt.Shape]:
    fixed = {
        "front": ("@front", "circle"), _FITTED: ("@front", "triangle-down"), "candidates": ("@candidate", "circle"),
        "teacher": ("@ink", STAR),
    }  # fmt: skip
    others = itertools.count()
    looks = [fixed.get(name) or (f"@c{(i := next(others)) % 5}", SHAPES[i % 5]) for name in names]
    legend = alt.Legend(columns=alt.ExprRef("width < 520 ? 2 : 7"), offset=32)
    color = alt.Scale(domain=list(names), range=[found for found, _ in looks])
    shape = alt.Scale(domain=list(names), range=[found for _, found in looks])
    return alt.Color("series:N", scale=color, legend=legend), alt.Shape("series:N", scale=shape, legend=legend)


def shape_picture(run: SearchRun, link: str = "front") -> Picture | None:
    """Heads and neurons that a model keeps of each of the teacher's layers; any model of the front can be chosen."""
    best, teacher = run.best, run.teacher.architecture if run.teacher else None
    important = [member for member in run.front if member.winner is not None or member is best]
    members = important + [member for member in thinned(run.front, MOSTSHAPES) if member not in important]
    named: list[tuple[str, ModelShape]] = [(called(member), member.architecture) for member in members]
    named += [(model.name, model.architecture) for model in run.baselines]
    if not named or best is None:
        return None
    views = []
    for part, attribute, title in (
        ("heads", "num_attention_heads", "Attention heads"), ("neurons", "intermediate_size", "MLP neurons"),
    ):  # fmt: skip
        rows = [row for name, shape in named for row in _layers(name, shape, teacher, part, attribute)]
        options = (
            alt.binding_select(options=[name for name, _ in named], name="Model ") if part == "heads" else alt.Undefined
        )
        chosen = alt.param(name="model", value=called(best), bind=options)
        base = data("rows").transform_filter("datum.model === model").encode(
            x=alt.X("layer:O", title="the teacher's layer" if part == "neurons" else None,
                    axis=alt.Axis(labelAngle=0, labelOverlap=True)), tooltip=tips(),
        )  # fmt: skip
        up = alt.Axis(tickCount=3, titleAngle=0, titleAlign="left", titleAnchor="end", titleX=0, titleY=-12)
        whole = base.mark_bar(color="@soft").encode(y=alt.Y("whole:Q", title=title, axis=up))
        kept = base.mark_bar(color="@front").encode(y=alt.Y("kept:Q", title=title, axis=up))
        views.append(View(alt.layer(whole, kept).add_params(chosen), {"rows": rows}, 130))
    return Picture(tuple(views), link=link)


def _layers(name: str, shape: ModelShape, teacher: ModelShape | None, part: str, attribute: str) -> list[Row]:
    kept = dict(zip(shape.source_layers, getattr(shape, attribute), strict=True))
    groups = dict(zip(shape.source_layers, shape.num_key_value_heads, strict=True))
    whole = dict(zip(teacher.source_layers, getattr(teacher, attribute), strict=True)) if teacher else kept
    rows = []
    for layer, size in whole.items():
        key_value = f" ({groups[layer]} key-value)" if part == "heads" and layer in groups else ""
        said = f"{kept[layer]} of {size} {part}{key_value}" if layer in kept else "pruned"
        rows.append({"model": name, "layer": layer, "kept": kept.get(layer, 0), "whole": size,
                     "tip": f"layer {layer}\n{said}"})  # fmt: skip
    return rows


def progress_picture(run: SearchRun) -> Picture | None:
    """The hypervolume against evaluations and time; None where there are fewer than two measurements."""
    points = run.result.hypervolume if run.result else ()
    if len(points) < 2:
        return None
    top = max(point.value for point in points) * 1.05 or 1.0
    views = []
    for name, title in (("evaluations", "Evaluations"), ("seconds", "Seconds of search")):
        rows = [
            {
                "series": "hypervolume", "x": getattr(p, name), "y": p.value,
                "tip": f"hypervolume {p.value:.4g}\n{p.evaluations:,} evaluations, {p.seconds:.0f} s",
            }
            for p in points
        ]  # fmt: skip
        x = Axis(title, 0.0, max(row["x"] for row in rows) or 1.0)
        looks = Looks(("hypervolume",), "hypervolume")
        views.append(lines(rows, looks, x, Axis("Hypervolume", 0.0, top), step=True, height=210, legend=False))
    return Picture(tuple(views), small=True)


def baselines_picture(run: SearchRun) -> Picture | None:
    """Held-out perplexities of best model, teacher and baselines with their 95% intervals; None for fewer than two."""
    best, teacher = run.best, run.teacher
    shown: list[tuple[str, float | None, float | None]] = []
    shown += [(teacher.name, teacher.held_out_perplexity, teacher.held_out_stderr)] if teacher else []
    shown += [(best_name(run), best.held_out_perplexity, best.held_out_stderr)] if best else []
    if best and best.fitted:
        after = best.fitted.after
        shown.append((f"{best_name(run)}, fitted", after.held_out_perplexity, after.held_out_stderr))
    shown += [(model.name, model.held_out_perplexity, model.held_out_stderr) for model in run.baselines]
    rows: list[Row] = [
        {
            "group": name, "series": name, "value": value, "low": max(value - NORMAL_95 * (stderr or 0.0), 0.5 * value),
            "high": value + NORMAL_95 * (stderr or 0.0), "hollow": False,
            "tip": f"{name}\n{perplexity_text(value, stderr)}",
        }
        for name, value, stderr in shown
        if value
    ]  # fmt: skip
    if len(rows) < 2:
        return None
    names = tuple(row["series"] for row in rows)
    looks = Looks(names, best_name(run), frozenset({teacher.name} if teacher else ()))
    values = [row["value"] for row in rows]
    x = perplexity_axis(values, [], "Perplexity, held-out text (log scale)")
    return Picture((intervals(rows, looks, x),))


def time_picture(run: SearchRun) -> Picture | None:
    """The time of every phase as one bar; None where it is not known."""
    from slm_ray.config.units import format_seconds

    spent = [(name, seconds) for name, seconds in phases(run) if seconds > 0]
    rows = [{"series": name, "value": seconds, "tip": f"{name}\n{format_seconds(seconds)}"} for name, seconds in spent]
    return Picture((bars(rows, Looks(tuple(name for name, _ in spent)), ""),)) if rows else None


def finalists_picture(run: SearchRun) -> Picture | None:
    """Every proxy of the finalists against their loss after short training; None for fewer than two finalists."""
    trained = [(m, short.loss) for m in run.front if (short := m.short_training) and short.loss is not None]
    if len(trained) < 2:
        return None
    by_trial = {trial.trial: trial for trial in run.candidates}
    values = []
    for member, _ in trained:
        trial = by_trial.get(member.trial)
        measured = {name: found.value for name, found in trial.measurements.items()} if trial else {}
        values.append(measured | {"params": float(member.params)})
    views = []
    for name in [name for name in values[0] if all(name in other for other in values)]:
        rows: list[Row] = []
        for (member, loss), found in zip(trained, values, strict=True):
            shown = count_text(found[name]) if name in _SIZES else f"{found[name]:.4g}"
            rows.append({"x": found[name], "y": loss, "tip": f"{member.name}\n{name} {shown}\nloss {loss:.4f}"})
        xs, ys = [row["x"] for row in rows], [row["y"] for row in rows]
        note = rank_sentence([-x for x in xs] if name in _SIZES else xs, ys)
        views.append(scatter(rows, axis_over(xs, name), axis_over(ys, "Loss after training"), title=name, note=note))
    return Picture(tuple(views), small=True)


def rank_sentence(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Kendall's tau-b and Spearman's rho as scipy gives them; says so where they are undefined."""
    from scipy import stats

    if len(xs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2 or not all(map(math.isfinite, (*xs, *ys))):
        return "too few different values for a rank correlation"
    tau, rho = stats.kendalltau(xs, ys).statistic, stats.spearmanr(xs, ys).statistic
    return f"tau {tau:+.2f}, rho {rho:+.2f} over {len(xs)} finalists: too few for an interval"
