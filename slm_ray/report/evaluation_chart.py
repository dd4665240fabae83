"""The data of an evaluation's pictures: intervals of scores, differences, and efficiency against quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.units import format_bytes, format_count
from slm_ray.report.evaluation_records import TEACHER, EvaluatedModel, EvaluationRecords, Score
from slm_ray.report.evaluation_tables import difference_cells, domains_of, ends_of, full_name, normal_range
from slm_ray.report.evaluation_tasks import TaskRow, is_share, score_text, task_models, task_rows
from slm_ray.report.panels import figure_axis
from slm_ray.report.records import items, mapping, number
from slm_ray.report.wording import perplexity_text

Look = str | int
_NOISE = ("within the noise", "noise not known")


@dataclass(frozen=True)
class Row:
    """A model's figure in a picture of intervals; ``hollow`` where it says little."""

    name: str
    look: Look
    score: Score
    facts: tuple[str, ...]
    hollow: bool = False


@dataclass(frozen=True)
class Group:
    """The figures under one title, with what guessing gives."""

    name: str
    rows: tuple[Row, ...]
    chance: float | None = None


@dataclass(frozen=True)
class Intervals:
    """A picture of intervals: what is across, and the groups from top to bottom; ``zero`` for differences."""

    label: str
    groups: tuple[Group, ...]
    zero: bool = False


def looks(run: EvaluationRecords) -> dict[str, Look]:
    """How each model is drawn everywhere: the first, teachers, and the others by number."""
    found: dict[str, Look] = {}
    count = 0
    for place, model in enumerate(run.models):
        if place == 0:
            found[model.short] = "first"
        elif model.role == TEACHER:
            found[model.short] = "teacher"
        else:
            found[model.short] = count
            count += 1
    return found


def text_intervals(run: EvaluationRecords) -> Intervals:
    """Bits per byte by domain: they can be compared whatever the tokenizers are."""
    look, groups = looks(run), []
    for domain in domains_of(run):
        rows = []
        for model in run.models:
            found = model.text(domain)
            if found is None or found.bits_per_byte is None:
                continue
            perplexity = perplexity_text(found.perplexity.value if found.perplexity else None)
            low, high = ends_of(found.bits_per_byte)
            bits = f"{found.bits_per_byte.value:.4f} bits per byte ({low:.4f} to {high:.4f})"
            facts = (bits, f"perplexity {perplexity}")
            rows.append(Row(full_name(model), look[model.short], found.bits_per_byte, facts))
        if rows:
            groups.append(Group(domain, tuple(rows)))
    return Intervals("Bits per byte (less is better)", tuple(groups))


def _scaled(score: Score, times: float) -> Score:
    low, high = ends_of(score)
    return Score(times * score.value, None, times * low, times * high, score.better)


def _task_group(row: TaskRow, models: Sequence[EvaluatedModel], look: dict[str, Look]) -> Group:
    found = []
    for place, model in enumerate(models):
        score = row.scores[place]
        if score is not None:
            facts = (f"{row.metric} {score_text(row, place)}", row.facts)
            found.append(Row(full_name(model), look[model.short], _scaled(score, 100), facts, row.noisy[place]))
    return Group(row.title, tuple(found), None if row.chance is None else 100 * row.chance)


def task_intervals(run: EvaluationRecords) -> Intervals:
    """Scores of tasks, groups and averages whose metric is a share; the tasks inside groups are in the table alone."""
    models, look = task_models(run), looks(run)
    shown = [row for row in task_rows(run) if row.kind != "member" and is_share(row)]
    groups = [_task_group(row, models, look) for row in shown]
    label = "Score, % (more is better; hollow: within the noise of the first)"
    return Intervals(label, tuple(group for group in groups if group.rows))


def difference_intervals(run: EvaluationRecords) -> list[Intervals]:
    """Every comparison: a picture per model compared with, kind and quantity that share a scale."""
    by_name = {model.name: model for model in run.models}
    compared = [name for name in dict.fromkeys(d.to for d in run.main_differences) if name in by_name]
    panels = (
        ("text", "loss", "Loss less that of {}, nats per token (left of 0 is better)", 1.0),
        ("text", "bits_per_byte", "Bits per byte less those of {} (left of 0 is better)", 1.0),
        ("task", None, "Score less that of {}, points of per cent (right of 0 is better)", 100.0),
    )
    found = []
    for to in compared:
        for kind, quantity, label, times in panels:
            groups = _difference_groups(run, to, kind, quantity, times)
            if groups:
                found.append(Intervals(label.format(by_name[to].short), groups, zero=True))
    return found


def _difference_groups(
    run: EvaluationRecords, to: str, kind: str, quantity: str | None, times: float
) -> tuple[Group, ...]:
    look, by_name = looks(run), {model.name: model for model in run.models}
    rows = {row.name: row for row in task_rows(run)}
    groups: dict[str, list[Row]] = {}
    for d in run.main_differences:
        same = (d.to, d.kind) == (to, kind) and quantity in (None, d.quantity) and d.model in by_name
        inside = kind == "task" and d.of in rows and (rows[d.of].kind == "member" or not is_share(rows[d.of]))
        if not same or inside:
            continue
        model, cells = by_name[d.model], difference_cells(d)
        facts = (f"{d.quantity.replace('_', ' ')} {cells[0]} ({cells[1]})", cells[2])
        row = Row(full_name(model), look[model.short], _scaled(d.score, times), facts, d.verdict in _NOISE)
        groups.setdefault(rows[d.of].title if kind == "task" and d.of in rows else d.of, []).append(row)
    return tuple(Group(name, tuple(found)) for name, found in groups.items())


def intervals_axis(picture: Intervals) -> dict[str, Any]:
    """The axis below all groups."""
    low, high = normal_range(row.score for group in picture.groups for row in group.rows)
    chances = [group.chance for group in picture.groups if group.chance is not None]
    ends = [low, high, *chances, *([0.0] if picture.zero else [])]
    axis = figure_axis(ends, picture.label, 6)
    return axis if not axis["log"] else figure_axis([*ends, 0.0], picture.label, 6)


def intervals_data(picture: Intervals, models: Sequence[tuple[str, Look]]) -> dict[str, Any]:
    """What the page's script draws."""

    def row_data(row: Row) -> dict[str, Any]:
        low, high = ends_of(row.score)
        known = high > low
        return {
            "name": row.name, "look": row.look, "hollow": row.hollow, "facts": [fact for fact in row.facts if fact],
            "value": _short(row.score.value), "low": _short(low) if known else None,
            "high": _short(high) if known else None,
        }  # fmt: skip

    shown = {row.name for group in picture.groups for row in group.rows}
    return {
        "x": intervals_axis(picture), "label": picture.label, "zero": picture.zero, "log": False,
        "models": [{"name": name, "look": look} for name, look in models if name in shown],
        "groups": [
            {"name": group.name, "chance": group.chance, "rows": [row_data(row) for row in group.rows]}
            for group in picture.groups
        ],
    }  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class Quantity:
    """What a scatter can have across or up.

    Attributes:
        label: Its name with the unit.
        values: Model's short name to value.
        texts: The same as text.
        scores: With intervals, where they are known.
    """

    label: str
    values: dict[str, float]
    texts: dict[str, str]
    scores: dict[str, Score]


def _plain(run: EvaluationRecords, label: str, read: Callable[[EvaluatedModel], object],
           write: Callable[[float], str]) -> Quantity:  # fmt: skip
    values = {m.short: value for m in run.models if (value := number(read(m))) is not None}
    return Quantity(label, values, {name: write(value) for name, value in values.items()}, {})


def _speed(model: EvaluatedModel, kind: str) -> float | None:
    """Tokens/s of the first setting measured, which is the same for every model."""
    entries = items(mapping(model.efficiency).get(kind))
    return number(entries[0].get("tokens_per_second")) if entries else None


def _setting(run: EvaluationRecords, kind: str, size: str) -> str:
    """What the speed was measured with, for the axis."""
    entry = next((found[0] for m in run.models if (found := items(mapping(m.efficiency).get(kind)))), None)
    return "" if entry is None else f" (batch {entry.get('batch')}, {entry.get(size)} tokens)"


def efficiency_quantities(run: EvaluationRecords) -> dict[str, Quantity]:
    """What a model costs, as far as two models have it."""

    def part(name: str) -> Callable[[EvaluatedModel], object]:
        return lambda model: mapping(model.efficiency).get(name)

    found = {
        "decode": _plain(run, f"Decode, tokens/s{_setting(run, 'decode', 'context_tokens')}",
                         lambda m: _speed(m, "decode"), lambda v: f"{v:,.1f}"),
        "prefill": _plain(run, f"Prefill, tokens/s{_setting(run, 'prefill', 'prompt_tokens')}",
                          lambda m: _speed(m, "prefill"), lambda v: f"{v:,.0f}"),
        "params": _plain(run, "Parameters", lambda m: m.params, format_count),
        "flops": _plain(run, "FLOPs per token", part("flops_per_token"), format_count),
        "memory": _plain(run, "Peak memory, MiB", lambda m: _mib(mapping(m.efficiency).get("peak_memory_bytes")),
                         lambda v: format_bytes(v * 2**20)),
        "kv": _plain(run, "KV cache per token, bytes", part("kv_bytes_per_token"), format_bytes),
    }  # fmt: skip
    return {key: quantity for key, quantity in found.items() if len(quantity.values) > 1}


def _mib(value: object) -> float | None:
    found = number(value)
    return None if found is None else found / 2**20


def quality_quantities(run: EvaluationRecords) -> dict[str, Quantity]:
    """Bits per byte of each domain and averages of suites (single tasks where there is none)."""
    found: dict[str, Quantity] = {}
    for domain in domains_of(run):
        scores = {m.short: s.bits_per_byte for m in run.models if (s := m.text(domain)) and s.bits_per_byte}
        texts = {name: f"{score.value:.4f}" for name, score in scores.items()}
        values = {name: score.value for name, score in scores.items()}
        found[f"text {domain}"] = Quantity(f"Bits per byte, {domain}", values, texts, scores)
    models, rows = task_models(run), [row for row in task_rows(run) if row.kind != "member" and is_share(row)]
    for row in [row for row in rows if row.kind == "average"] or rows:
        placed = {model.short: place for place, model in enumerate(models)}
        known = {name: _scaled(score, 100) for name, place in placed.items() if (score := row.scores[place])}
        texts = {name: score_text(row, placed[name]) for name in known}
        values = {name: score.value for name, score in known.items()}
        found[f"task {row.name}"] = Quantity(f"{row.title}, %", values, texts, known)
    return {key: quantity for key, quantity in found.items() if len(quantity.values) > 1}


def scatter_data(run: EvaluationRecords) -> dict[str, Any] | None:
    """Efficiency against quality; None where fewer than two models have both."""
    across, up = efficiency_quantities(run), quality_quantities(run)
    if not across or not up:
        return None
    both, look = across | up, looks(run)
    points = []
    for model in run.models:
        mine = {key: quantity for key, quantity in both.items() if model.short in quantity.values}
        if mine:
            points.append({
                "name": full_name(model), "look": look[model.short],
                "values": {key: _short(q.values[model.short]) for key, q in mine.items()},
                "texts": {key: q.texts[model.short] for key, q in mine.items()},
                "intervals": {
                    key: [_short(end) for end in ends_of(q.scores[model.short])]
                    for key, q in mine.items() if model.short in q.scores
                },
            })  # fmt: skip
    return {
        "axes": {key: _axis_of(quantity) for key, quantity in both.items()}, "xs": list(across), "ys": list(up),
        "points": points,
    }  # fmt: skip


def _axis_of(quantity: Quantity) -> dict[str, Any]:
    ends = [end for score in quantity.scores.values() for end in ends_of(score)]
    return figure_axis([*quantity.values.values(), *ends], quantity.label)
