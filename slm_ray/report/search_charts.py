"""The pictures of a search: the front, the layers of a model, progress, baselines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import altair as alt

from slm_ray.records.budget import QUANTITIES
from slm_ray.records.search import FrontMember, MeasuredModel, ModelShape, Trial
from slm_ray.report.charts import (
    SHAPES,
    STAR,
    Looks,
    Picture,
    Row,
    View,
    data,
    intervals,
    labels_layer,
    lines,
    tips,
    x_of,
    y_of,
)
from slm_ray.report.placing import Axis, Label, perplexity_axis
from slm_ray.report.search import SearchRun, best_name, called
from slm_ray.report.text import NORMAL_95, count_text, perplexity_text, ratio_text, shape_text, share_text

MOST_CANDIDATES = 600  # that are drawn off the front
_MOST_SHAPES, _HEIGHT = 30, 470
_FITTED = "weights fitted, as exported"
_T = TypeVar("_T")


def thinned(found: Sequence[_T], most: int) -> list[_T]:
    """At most so many of some items (two or more), evenly spread; the first and the last are among them."""
    if len(found) <= most:
        return list(found)
    return [found[place] for place in sorted({round(i * (len(found) - 1) / (most - 1)) for i in range(most)})]


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


def front_picture(run: SearchRun) -> tuple[Picture, str]:
    """Perplexity against size, and a sentence on the candidates that are not drawn (empty where all are)."""
    x, y = front_axes(run)
    quantity, front = run.quantity, [member for member in run.front if member.perplexity]
    on_front = {member.trial for member in front}
    measured = [trial for trial in run.candidates if trial.trial not in on_front and trial.perplexity]
    inside = [trial for trial in measured if (trial.perplexity or 0.0) <= y.high]
    drawn = thinned(inside, MOST_CANDIDATES)
    cloud: list[Row] = [
        {"series": "candidates", "x": t.cost[quantity], "y": t.perplexity, "tip": tip_of(run, t, t.name)} for t in drawn
    ]
    line: list[Row] = [{"x": member.cost[quantity], "y": member.perplexity} for member in front]
    points, labels = _front_points(run, front, x, y)
    teacher = run.teacher if run.teacher and run.teacher.perplexity else None
    if teacher:
        at, value, tip = teacher.cost[quantity], teacher.perplexity or 1.0, tip_of(run, teacher, teacher.name)
        points.append({"series": "teacher", "x": at, "y": value, "size": 260, "tip": tip})
        labels.append(Label(at, value, f"{teacher.name}\u2002{perplexity_text(value)}", (-1, 1), strong=True))
    drops: list[Row] = [
        {"x": member.cost[quantity], "y": member.perplexity, "y2": member.final.perplexity}
        for member in front
        if member.fitted and member.final.perplexity
    ]
    known = {"front": True, _FITTED: drops, "candidates": cloud, "teacher": teacher}
    names = [*(name for name, found in known.items() if found), *sorted(model.name for model in run.baselines)]
    color, shape = _front_scales(names)
    base = {"x": x_of(x), "y": y_of(y)}
    looks = {"color": color, "shape": shape, "tooltip": tips()}
    layers, zone = [], []
    if run.budget and run.budget.quantity == quantity and max(run.budget.low, x.low) < min(run.budget.high, x.high):
        zone = [{"low": max(run.budget.low, x.low), "high": min(run.budget.high, x.high)}]
        layers.append(data("zone").mark_rect(color="@budget", opacity=0.1).encode(x=x_of(x, "low"), x2="high:Q"))
    layers.append(data("cloud").mark_point(filled=True, size=24, opacity=0.5).encode(**base, **looks))
    if teacher:
        layers.append(data("level").mark_rule(strokeDash=[5, 4], color="@ink", opacity=0.6).encode(y=y_of(y)))
    layers.append(data("line").mark_line(color="@front", strokeWidth=2).encode(**base))
    layers.append(data("drops").mark_rule(color="@front", strokeWidth=1.2, opacity=0.7).encode(**base, y2="y2:Q"))
    marks = data("points").mark_point(filled=True, opacity=1, stroke="@card", strokeWidth=1, cursor="pointer")
    layers.append(marks.encode(**base, **looks, size=alt.Size("size:Q", scale=None, legend=None)))
    covered = [(row["x"], row["y"]) for row in (*points, *cloud)]
    kept_off = [[(row["x"], row["y"]) for row in line], *([(r["x"], r["y"]), (r["x"], r["y2"])] for r in drops)]
    texts, rows = labels_layer(labels, x, y, _HEIGHT, covered, kept_off)
    found: dict[str, Sequence[Row]] = {
        "cloud": cloud, "line": line, "drops": drops, "points": points, "labels": rows, "zone": zone,
        "level": [{"y": teacher.perplexity}] if teacher else [],
    }  # fmt: skip
    view = View(alt.layer(*layers, texts), found, _HEIGHT)
    return Picture((view,)), _not_drawn(len(measured) - len(inside), len(inside) - len(drawn), len(inside))


def _not_drawn(above: int, left_out: int, inside: int) -> str:
    count = "One candidate lies" if above == 1 else f"{above:,} candidates lie"
    said = [f"{count} above the picture."] if above else []
    said += [f"{left_out:,} of {inside:,} candidates are left out of the picture, evenly."] if left_out else []
    return " ".join(said)


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
            labels.append(Label(at, final or value, text, (-1, -1), strong=member == run.best))
    taken: list[tuple[float, int]] = []
    for model in sorted(run.baselines, key=lambda one: -(one.perplexity or 0.0)):
        if not model.perplexity:
            continue
        at, value, arrow = model.cost[quantity], model.perplexity, ""
        if value > y.high:
            # Those above the axis have a row each at the top edge where they would share a place.
            near = {row for place, row in taken if abs(place - at) <= 0.3 * (x.high - x.low)}
            number = next(i for i in itertools.count() if i not in near)
            taken.append((at, number))
            value, arrow = y.at(1 - (16 + 24 * number) / _HEIGHT), "↑ "
        tip = tip_of(run, model, f"baseline {model.name}")
        points.append({"series": model.name, "x": at, "y": value, "size": 90, "tip": tip, "model": model.name})
        text = f"{arrow}{model.name}\u2002{perplexity_text(model.perplexity)}"
        labels.insert(0, Label(at, value, text, (1, 0)))
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


def shape_picture(run: SearchRun) -> Picture | None:
    """Heads and neurons that a model keeps of each of the teacher's layers; any model of the front can be chosen."""
    best, teacher = run.best, run.teacher.architecture if run.teacher else None
    if best is None:
        return None
    important = [member for member in run.front if member.winner is not None or member is best]
    members = important + [member for member in thinned(run.front, _MOST_SHAPES) if member not in important]
    named = [(called(member), member.architecture) for member in members]
    named += [(model.name, model.architecture) for model in run.baselines]
    rows = [row | {"model": name} for name, shape in named for row in _layers(shape)]
    whole = _layers(teacher) if teacher else []
    views = []
    for part, title, groups in (
        ("heads", "Attention heads", " + ' (' + datum.groups + ' key-value)'"), ("neurons", "MLP neurons", ""),
    ):  # fmt: skip
        choice = alt.binding_select(options=[name for name, _ in named], name="Model ")
        chosen = alt.param(name="model", value=called(best), bind=choice if part == "heads" else alt.Undefined)
        across = alt.X("layer:O", title="the teacher's layer" if part == "neurons" else None,
                       axis=alt.Axis(labelAngle=0, labelOverlap=True))  # fmt: skip
        above = alt.Axis(tickCount=3, titleAngle=0, titleAlign="left", titleAnchor="end", titleX=0, titleY=-12)
        look = {"x": across, "y": alt.Y(f"{part}:Q", title=title, axis=above), "tooltip": tips()}
        tip = f"'layer ' + datum.layer + '\\n' + datum.{part} + ' {part}'{groups}"
        of_teacher = data("whole").transform_calculate(tip=f"{tip} + ', the teacher'")
        kept = data("rows").transform_filter("datum.model === model").transform_calculate(tip=tip)
        layers = [of_teacher.mark_bar(color="@soft").encode(**look), kept.mark_bar(color="@front").encode(**look)]
        views.append(View(alt.layer(*layers).add_params(chosen), {"whole": whole, "rows": rows}, 130))
    return Picture(tuple(views))


def _layers(shape: ModelShape) -> list[Row]:
    sizes = (shape.source_layers, shape.num_attention_heads, shape.num_key_value_heads, shape.intermediate_size)
    names = ("layer", "heads", "groups", "neurons")
    return [dict(zip(names, layer, strict=True)) for layer in zip(*sizes, strict=True)]


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
