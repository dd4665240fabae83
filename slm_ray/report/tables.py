"""The tables of a run, as data: what is in them is decided here, and drawn elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm_ray.config.units import format_count, format_seconds
from slm_ray.records.budget import QUANTITIES
from slm_ray.report.fitted import fitted_perplexity, fitted_tokens
from slm_ray.report.model import Model, RunRecords, Shape
from slm_ray.report.records import items, mapping, number
from slm_ray.report.wording import (
    MISSING,
    count_text,
    differs,
    perplexity_text,
    range_text,
    ratio_text,
    share_text,
)

_SAME_SIZE = 0.02
_CALIBRATION, _HELD_OUT = "calibration perplexity", "held-out perplexity (±\u00a0s.e.)"
_FITTED = "held-out, weights fitted (±\u00a0s.e.)"
_SHAPE_HEADER = ("layers", "width", "heads", "neurons")
_PHASES = {"corpus": "text", "final": "final measurement", "steps": "earlier steps"}


@dataclass(frozen=True)
class Table:
    """A titled table of texts, ready to be written in any format."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Comparison:
    """The best model beside another on the same held-out text.

    Attributes:
        model: The other model.
        ratio: Its perplexity over the best model's.
        is_clear: The difference is larger than the noise; None where the noise is not known.
    """

    model: Model
    ratio: float | None
    is_clear: bool | None


def teacher_perplexity(run: RunRecords, of: Model) -> float | None:
    """The teacher's perplexity on the text that the model's own shown perplexity was measured on."""
    if run.teacher is None:
        return None
    return run.teacher.calibration_perplexity if of.held_out_perplexity is None else run.teacher.held_out_perplexity


def comparisons(run: RunRecords) -> list[Comparison]:
    """The best model against every baseline, in the order recorded."""
    best = run.best
    if best is None:
        return []
    compared = []
    for other in run.baselines:
        mine, its = best.held_out_perplexity, other.held_out_perplexity
        known = mine is not None and its is not None
        ratio = its / mine if mine and its else None
        clear = differs(mine, best.held_out_stderr, its, other.held_out_stderr) if known else None  # type: ignore[arg-type]
        compared.append(Comparison(other, ratio, clear))
    return compared


def _shape_cells(shape: Shape | None, teacher: Shape | None) -> tuple[str, ...]:
    if shape is None or not shape.num_layers:
        return (MISSING,) * 4
    layers = f"{shape.num_layers} of {teacher.num_layers}" if teacher else str(shape.num_layers)
    return layers, str(shape.hidden_size), range_text(shape.num_attention_heads), range_text(shape.intermediate_size)


def without_empty_columns(table: Table) -> Table:
    """Leave out the columns that say nothing in any row (such as held-out figures of an unfinished run)."""
    kept = [i for i in range(len(table.header)) if not table.rows or any(row[i] != MISSING for row in table.rows)]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return Table(table.title, tuple(table.header[i] for i in kept), rows)


def front_table(run: RunRecords) -> Table:
    """One row per model of the front, the largest first."""
    header = (
        "winner",
        "trial",
        "parameters",
        "of teacher",
        _CALIBRATION,
        _HELD_OUT,
        "× teacher",
        _FITTED,
        *_SHAPE_HEADER,
    )
    teacher_params, shape = (run.teacher.params, run.teacher.shape) if run.teacher else (None, None)
    rows = tuple(
        (
            MISSING if model.winner is None else str(model.winner),
            MISSING if model.trial is None else str(model.trial),
            count_text(model.params),
            share_text(model.params, teacher_params),
            perplexity_text(model.calibration_perplexity, model.calibration_stderr),
            perplexity_text(model.held_out_perplexity, model.held_out_stderr),
            ratio_text(model.perplexity, teacher_perplexity(run, model)),
            perplexity_text(*fitted_perplexity(model)),
            *_shape_cells(model.shape, shape),
        )
        for model in reversed(run.front)
    )
    return without_empty_columns(Table("The front" if run.finished else "The front so far", header, rows))


def verdict(comparison: Comparison) -> str:
    """How another model stands against the best one: ``1.67× worse``, ``within the noise``."""
    if comparison.ratio is None:
        return MISSING
    if comparison.is_clear is False:
        return "within the noise"
    worse = comparison.ratio >= 1
    times = ratio_text(comparison.ratio if worse else 1 / comparison.ratio, 1.0)
    return f"{times} {'worse' if worse else 'better'}"


def baseline_table(run: RunRecords) -> Table:
    """The teacher, the best model and the baselines on the same held-out text."""
    header = ("model", "parameters", "of teacher", _HELD_OUT, "× teacher", "against the winner")
    compared = {id(item.model): item for item in comparisons(run)}
    teacher_params = run.teacher.params if run.teacher else None
    reference = run.teacher.held_out_perplexity if run.teacher else None
    best = run.best
    rows = []
    for model in [m for m in (run.teacher, best) if m is not None] + list(run.baselines):
        comparison = compared.get(id(model))
        rows.append(
            (
                best_name(run) if model is best else model.name,
                count_text(model.params),
                share_text(model.params, teacher_params),
                perplexity_text(model.held_out_perplexity, model.held_out_stderr),
                ratio_text(model.held_out_perplexity, reference),
                verdict(comparison) if comparison else MISSING,
            )
        )
        if model is best and (fitted := fitted_perplexity(model))[0] is not None:
            name = f"{best_name(run)}, weights fitted on {fitted_tokens(model)}"
            cells = (count_text(model.params), share_text(model.params, teacher_params), perplexity_text(*fitted))
            rows.append((name, *cells, ratio_text(fitted[0], reference), MISSING))
    return without_empty_columns(Table("Against the teacher and the baselines", header, tuple(rows)))


def best_name(run: RunRecords) -> str:
    """What to call the best model: ``winner 0``, or ``best so far`` in a run without winners."""
    best = run.best
    if best is not None and best.winner is not None:
        return f"winner {best.winner}"
    return "best of the front" if run.finished else "best so far"


def phases(run: RunRecords) -> list[tuple[str, float]]:
    """The phases of the run and the seconds each took, in order."""
    seconds = run.spent.get("seconds")
    if not isinstance(seconds, dict):
        return []
    found = [(str(name), number(value)) for name, value in seconds.items()]
    return [(_PHASES.get(name, name), value) for name, value in found if value is not None]


def beside(run: RunRecords, other: Model) -> str:
    """A baseline's name with its size in words: the best model's own, or what it is."""
    best = run.best.params if run.best else None
    if other.params is None or not best:
        return other.name
    same = abs(other.params / best - 1) <= _SAME_SIZE
    return f"{other.name}, {'same size' if same else count_text(other.params)}"


def candidates_text(run: RunRecords) -> str:
    """How many candidates were tried, failed, and met again."""
    tried = number(run.spent.get("candidates"))
    failed = number(run.spent.get("failed"))
    tried = len(run.candidates) + run.num_failed if tried is None else tried
    parts = [f"{run.num_failed if failed is None else failed:,.0f} failed"]
    if hits := number(run.spent.get("cache_hits")):
        parts.append(f"{hits:,.0f} met again and not paid for twice")
    if reused := number(run.spent.get("reused_flops")):
        parts.append(f"{count_text(reused)} FLOPs saved where candidates begin alike")
    return f"{tried:,.0f} candidates ({', '.join(parts)})"


def cost_table(run: RunRecords) -> Table:
    """What was spent: time by phase, candidates, tokens and FLOPs."""
    rows = [(name, format_seconds(seconds)) for name, seconds in phases(run)]
    if rows:
        rows.append(("time in all", format_seconds(sum(seconds for _, seconds in phases(run)))))
    rows.append(("candidates", candidates_text(run)))
    for key, name in (("forward_tokens", "tokens through a model"), ("flops", "FLOPs")):
        value = number(run.spent.get(key))
        if value is not None:
            rows.append((name, format_count(value) if value < 1e15 else f"{value:.2g}"))
    rows += [_step_row(step) for step in items(run.spent.get("steps"))]
    rows.append(("energy", "not measured"))
    return Table("What was spent", ("what", "how much"), tuple(rows))


def _step_row(step: Mapping[str, Any]) -> tuple[str, str]:
    """What a step before the search cost."""
    search, training = mapping(step.get("search")), mapping(step.get("training"))
    flops = [format_count(number(part.get("flops")) or 0) for part in (search, training)]
    tokens = format_count(number(training.get("tokens")) or 0)
    return f"of them step {step.get('step')}", f"search {flops[0]} FLOPs, training {flops[1]} on {tokens} tokens"


def progress_table(run: RunRecords) -> Table:
    """The hypervolume of the front against evaluations and seconds."""
    rows = tuple((f"{e:,.0f}", format_seconds(s), f"{v:.4g}") for e, s, v in run.hypervolume)
    return Table("Search progress", ("evaluations", "time", "hypervolume"), rows)


def budget_text(run: RunRecords) -> str | None:
    """The budget with its unit, such as ``53.8M to 94.2M parameters``."""
    if run.budget is None:
        return None
    quantity, low, high = run.budget
    return f"{format_count(low)} to {format_count(high)} {QUANTITIES.get(quantity, quantity)}"
