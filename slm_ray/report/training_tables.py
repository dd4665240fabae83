"""The tables of a pretraining run, as data."""

from __future__ import annotations

import math

from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.report.matching import equal_flops, format_flops, match
from slm_ray.report.tables import Table, without_empty_columns
from slm_ray.report.training import DONE, TrainedModel, TrainingRecords
from slm_ray.report.training_chart import times_text
from slm_ray.report.wording import MISSING, count_text, perplexity_text


def perplexity_of(loss: float | None, stderr: float | None = None) -> str:
    """A loss as a perplexity; its standard error is carried over (delta method)."""
    if loss is None or loss > 300:
        return MISSING
    value = math.exp(loss)
    return perplexity_text(value, None if stderr is None else value * stderr)


def models_table(run: TrainingRecords) -> Table:
    """One row per model."""
    header = (
        "model", "start", "parameters", "tokens", "first perplexity", "last perplexity (±\u00a0s.e.)", "bits per byte",
        "state",
    )  # fmt: skip
    rows = []
    for model in run.models:
        first, last = (model.evaluations[0], model.evaluations[-1]) if model.evaluations else (None, None)
        rows.append((
            model.name, model.start, count_text(model.params), format_count(last.tokens) if last else MISSING,
            perplexity_of(first.loss) if first else MISSING,
            perplexity_of(last.loss, last.stderr) if last else MISSING,
            f"{last.bits_per_byte:.3f}" if last and last.bits_per_byte is not None else MISSING,
            f"{model.state}: {model.error}" if model.error else model.state,
        ))  # fmt: skip
    return without_empty_columns(Table("The models", header, tuple(rows)))


def matching_table(run: TrainingRecords) -> Table:
    """What every start needed to get as far as each of the others; everything is counted into the FLOPs."""
    header = (
        "to reach the last loss of", "model", "tokens", "tokens, against its own", "FLOPs", "FLOPs, against its own",
    )  # fmt: skip
    curves, rows = run.curves, []
    for reference in curves if len(curves) > 1 else []:
        for curve in curves:
            found = match(curve, reference)
            goal = f"{reference.name} ({reference.final_loss:.4f})"
            if found.tokens is None or found.flops is None:
                rows.append((goal, curve.name, "not reached", MISSING, MISSING, MISSING))
                continue
            same = curve is reference
            tokens = format_count(found.tokens) if found.tokens else "0, before its first step"
            ratios = [MISSING if same else times_text(r) or MISSING for r in (found.ratio_tokens, found.ratio_flops)]
            rows.append((goal, curve.name, tokens, ratios[0], format_flops(found.flops), ratios[1]))
    return without_empty_columns(Table("Tokens and FLOPs to match", header, tuple(rows)))


def equal_flops_table(run: TrainingRecords) -> Table:
    """Every model at the same price, everything counted."""
    curves = run.curves
    if len(curves) < 2:
        return Table("At equal FLOPs", ("model", "loss"), ())
    budget, found = equal_flops(curves)
    rows = tuple(
        (name, f"{point.loss:.4f}", perplexity_of(point.loss), format_count(point.tokens)) if point else
        (name, "had spent more before its first step", MISSING, MISSING)
        for name, point in found.items()
    )  # fmt: skip
    title = f"At {format_flops(budget)} FLOPs each, everything counted"
    return Table(title, ("model", "loss", "perplexity", "tokens"), rows)


def _energy(model: TrainedModel) -> str:
    if model.joules is None:
        return "not known" if model.state == DONE else MISSING
    return f"{model.joules / 3.6e6:.3g} kWh"


def training_cost_table(run: TrainingRecords) -> Table:
    """What each model cost."""
    header = (
        "model", "time in steps", "tokens/s", "own FLOPs", "teacher's", "search's", "capture's", "in all",
        "peak memory", "CPU", "MFU", "energy",
    )  # fmt: skip
    rows = []
    for model in run.models:
        last = model.evaluations[-1] if model.evaluations else None
        own, teacher = (last.own_flops, last.teacher_flops) if last else (0.0, 0.0)
        search = "not known" if model.search_flops is None else format_flops(model.search_flops)
        whole = own + teacher + (model.search_flops or 0.0) + model.capture_flops
        rows.append((
            model.name, format_seconds(last.seconds) if last else MISSING,
            f"{model.tokens_per_second:,.0f}" if model.tokens_per_second else MISSING, format_flops(own),
            format_flops(teacher), search, format_flops(model.capture_flops), format_flops(whole),
            format_bytes(model.memory_bytes) if model.memory_bytes else MISSING,
            f"{model.cpu_percent:.0f}%" if model.cpu_percent is not None else MISSING,
            f"{100 * model.mfu:.1f}%" if model.mfu is not None else MISSING, _energy(model),
        ))  # fmt: skip
    return without_empty_columns(Table("What was spent", header, tuple(rows)))


def settings_text(run: TrainingRecords) -> str:
    """The options that matter most, in one line."""
    config = run.config
    facts = [
        str(config.get("data")), f"{config.get('tokens')} tokens each", f"distillation {config.get('distill')}",
        f"{config.get('optimizer')} at {config.get('learning_rate')}", f"{config.get('schedule')} schedule",
        f"{config.get('batch_size')} × {config.get('sequence_length')} tokens a step",
    ]  # fmt: skip
    return " · ".join(fact for fact in facts if "None" not in fact)
