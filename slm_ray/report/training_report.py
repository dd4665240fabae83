"""The page of a pretraining run: the picture of its curves, its sections, its headline."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.records.training import TrainEvaluation
from slm_ray.report.charts import Looks, Picture, Row, cut_at_top, lines
from slm_ray.report.content import Chapter, Figure, Report, Section, Text, Tile
from slm_ray.report.placing import Axis, Label, perplexity_axis
from slm_ray.report.render import write_report
from slm_ray.report.search_charts import thinned
from slm_ray.report.text import count_text, flops_text, load_code, needs_remote_code, perplexity_of, perplexity_text
from slm_ray.report.training import (
    Mark,
    TrainedRun,
    TrainingRun,
    equal_flops_table,
    load_training,
    marks,
    matching_table,
    models_table,
    training_cost_table,
)

TRAINING_PICTURE = "training.png"
_MOST_POINTS_OF_ALL, _FEWEST_POINTS, _HEIGHT, _MOST_LOSS = 2000, 40, 400, 300.0
_CURVES_LEAD = "Perplexity on held-out text; the band is one standard error."
_MARKS_LEAD = "A ring is where the first model was as good as another one ended, with what it needed less."
_HOVER_LEAD = "Hover or tap for figures; select a name to bring it out."
_MATCH_LEAD = (
    "A loss counts as reached at the first evaluation that shows it; nothing is interpolated. FLOPs are a model's own, "
    "its teacher's, and those of its search and of the capture of its logits."
)
_MODELS_LEAD = "Perplexity on the held-out text, before the first step and at the last evaluation."
_FLOPS_NOTE = "Its own, the teacher's, and those of the search and of the capture before the first step."


def _perplexity(loss: float | None) -> float:
    return math.exp(min(loss or 0.0, _MOST_LOSS))


def training_picture(run: TrainingRun, *, marked: bool = True) -> tuple[Picture, str] | None:
    """Perplexity against tokens and FLOPs, and a sentence on evaluations that are not drawn (empty where all are).

    ``marked``: with the places where the best model was as good as another ended. None where nothing was measured.
    """
    models, best = run.measured, run.best
    if best is None:
        return None
    points = [_perplexity(one.loss) for model in models for one in model.evaluations]
    levels = [(run.level[0], _perplexity(run.level[1]))] if run.level else []
    core = [_perplexity(model.evaluations[-1].loss) for model in models]
    core += [*(_perplexity(one.loss) for one in best.evaluations), *(value for _, value in levels)]
    y = perplexity_axis(core, points, "Perplexity, held-out text (log scale)")
    most = max(_FEWEST_POINTS, _MOST_POINTS_OF_ALL // len(models))
    ordered = [best, *(model for model in models if model is not best)]
    looks = Looks(tuple(model.name for model in ordered), best.name)
    found = marks(run) if marked else []
    rows = cut_at_top([row for model in ordered for row in _curve_rows(model, most)], ("tokens", "flops"), y)
    views = []
    for kind, title, above, note in (
        ("tokens", "Tokens trained on", "Against tokens", ""),
        ("flops", "FLOPs in all", "Against all FLOPs", _FLOPS_NOTE),
    ):

        def across(model: TrainedRun, at: TrainEvaluation, kind: str = kind) -> float:
            return at.tokens if kind == "tokens" else model.all_flops(at)

        rings: list[Row] = [
            {
                "series": mark.other.name, "x": across(best, mark.at), "y": _perplexity(mark.at.loss),
                "goal": _perplexity(mark.other.evaluations[-1].loss),
                "x2": across(mark.other, mark.other.evaluations[-1]),
            }
            for mark in found
        ]  # fmt: skip
        labels = [Label(across(best, at), _perplexity(at.loss), text) for at, text in mark_labels(run, found, kind)]
        x = Axis(title, 0.0, 1.02 * max(row[kind] for row in rows) or 1.0)
        views.append(lines(
            rows, looks, x, y, levels=levels, marks=rings, labels=labels, height=_HEIGHT, title=above, note=note,
            across=kind,
        ))  # fmt: skip
    whole = sum(len(model.evaluations) for model in models)
    shown = sum(min(len(model.evaluations), most) for model in models)
    left_out = "" if shown == whole else (
        f"{format_count(shown)} of {format_count(whole)} evaluations are drawn, evenly spread, the first and the last "
        "of each model among them; tables and rings were made from all of them."
    )  # fmt: skip
    return Picture(tuple(views)), left_out


def _curve_rows(model: TrainedRun, most: int) -> list[Row]:
    rows: list[Row] = []
    for at in thinned(model.evaluations, most):
        value, stderr = _perplexity(at.loss), at.stderr
        row = {"series": model.name, "tokens": at.tokens, "flops": float(f"{model.all_flops(at):.6g}")}
        row |= {"y": float(f"{value:.6g}"), "tip": "\n".join([
            model.name, f"{count_text(at.tokens)} tokens, {flops_text(model.all_flops(at))} FLOPs in all",
            f"loss {at.loss:.4f}" + (f" ± {stderr:.4f}" if stderr else ""), f"perplexity {perplexity_text(value)}",
        ])}  # fmt: skip
        if stderr:
            row |= {"low": float(f"{value * math.exp(-stderr):.6g}"), "high": float(f"{value * math.exp(stderr):.6g}")}
        rows.append(row)
    return rows


def mark_labels(run: TrainingRun, found: Sequence[Mark], kind: str) -> list[tuple[TrainEvaluation, str]]:
    """Texts beside the rings, for ``tokens`` or ``flops``; rings at one place share a text.

    Models are called by their starts where each has one of its own, else by their names.
    """
    starts = [model.start for model in run.measured]
    by_start = len(set(starts)) == len(starts)
    grouped: dict[tuple[int, str], tuple[TrainEvaluation, list[str]]] = {}
    for mark in found:
        text = mark.tokens if kind == "tokens" else mark.flops
        if text:
            names = grouped.setdefault((mark.at.step, text), (mark.at, []))[1]
            names.append(mark.other.start if by_start else mark.other.name)
    return [(at, f"{' and '.join(names)} matched: {text}") for (_, text), (at, names) in grouped.items()]


def curves_section(run: TrainingRun, key: str = "training", *, marked: bool = True) -> Section:
    """The curves against tokens and against FLOPs, with tokens-to-match marked; see :func:`training_picture`."""
    picture, left_out = training_picture(run, marked=marked) or (None, "")
    title = "Training" if run.result else "Training (unfinished run)"
    seen = "Perplexity against tokens, and against FLOPs"
    lead = " ".join([_CURVES_LEAD, *([_MARKS_LEAD] if marked and marks(run) else []), _HOVER_LEAD])
    figure = Figure(key, picture, seen, TRAINING_PICTURE, title, columns=2)
    return Section("Training curves", [figure, Text(left_out, small=True)], lead)


def training_headline(run: TrainingRun) -> str:
    """The run's result in a few sentences."""
    best = run.best
    if best is None or best.first is None or best.last is None:
        return "Nothing has been measured yet."
    sentences = [
        f"{best.name} ({count_text(best.params)} parameters) went from perplexity {perplexity_of(best.first.loss)} to "
        f"{perplexity_of(best.last.loss, best.last.stderr)} on held-out text in {count_text(best.last.tokens)} tokens."
    ]
    at_once = []
    for mark in marks(run):
        if mark.at.tokens == 0:
            at_once.append(f"{mark.other.name} after {count_text(mark.other.evaluations[-1].tokens)} tokens")
        else:
            how = " and ".join(
                f"{text} {unit}" for text, unit in ((mark.tokens, "tokens"), (mark.flops, "FLOPs")) if text
            )
            sentences.append(f"It reached the last loss of {mark.other.name} with {how or 'as much'}.")
    if at_once:
        sentences.append(f"Before its first step it was already as good as {' and '.join(at_once)}.")
    return " ".join(sentences)


def training_tiles(run: TrainingRun) -> list[Tile]:
    """The run's most important figures."""
    best = run.best
    if best is None or best.first is None or best.last is None:
        return []
    last, result = best.last, best.result
    weights = f"; {format_bytes(result.bytes)} of {result.dtype}" if result and result.bytes else ""
    found = [
        Tile("Model", count_text(best.params), f"parameters, {best.name}{weights}"),
        Tile(
            "Perplexity", perplexity_of(last.loss), f"held-out text; {perplexity_of(best.first.loss)} before training"
        ),
    ]
    if last.bits_per_byte is not None:
        found.append(Tile("Bits per byte", f"{last.bits_per_byte:.3f}", "comparable across tokenizers"))
    found.append(Tile("FLOPs", flops_text(best.all_flops(last)), "own, teacher's, search's and capture's"))
    speed = f", {best.tokens_per_second:,.0f} tokens/s" if best.tokens_per_second else ""
    return [*found, Tile("Time", format_seconds(last.seconds), f"in steps{speed}")]


def training_steps(run: TrainingRun) -> list[tuple[str, str]]:
    """What to do next, each with its code."""
    steps = []
    if run.result is None:
        steps.append(("Continue this run", f"slm-ray pretrain --resume {shlex.quote(str(run.folder))}"))
    exported = [model for model in run.models if model.result and model.result.model]
    best = run.best if run.best in exported else next(iter(exported), None)
    if best and best.result and best.result.model:
        folder = run.folder / best.result.model
        steps.append((f"Load {best.name}", load_code(str(folder), bool(needs_remote_code(folder)))))
    return steps


def settings_text(run: TrainingRun) -> str:
    """The options that matter most, in one line."""
    given = run.options
    facts = [
        str(given.get("data")), f"{given.get('tokens')} tokens each", f"distillation {given.get('distill')}",
        f"{given.get('optimizer')} at {given.get('learning_rate')}", f"{given.get('schedule')} schedule",
        f"{given.get('batch_size')} × {given.get('sequence_length')} tokens a step",
    ]  # fmt: skip
    return " · ".join(fact for fact in facts if "None" not in fact)


def training_report(run: TrainingRun) -> Report:
    """A pretraining run's page."""
    models, matching, equal, cost = (
        models_table(run), matching_table(run), equal_flops_table(run), training_cost_table(run)
    )  # fmt: skip
    sections = [
        curves_section(run), Section(models.title, [models], _MODELS_LEAD),
        Section(matching.title, [matching], _MATCH_LEAD), Section(equal.title, [equal]), Section(cost.title, [cost]),
        *run.closing_sections(training_steps(run)),
    ]  # fmt: skip
    chapter = Chapter(
        sections, facts=settings_text(run), headline=training_headline(run), notes=run.notes, tiles=training_tiles(run)
    )  # fmt: skip
    return Report("Training", "training report", [chapter])


def build_training_report(folder: Path) -> list[Path]:
    """Write ``training.png``, ``report.md`` and ``report.html`` of a run, finished or not, into its folder."""
    return write_report(training_report(load_training(folder)), folder)
