"""The report of a pretraining run: its curves, the comparison of starts, and what it cost."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from slm_ray.config.units import format_seconds
from slm_ray.report.blocks import Chapter, Drawing, Picture, Report, Rows, Section, Words
from slm_ray.report.facts import environment_section, reproduce_section
from slm_ray.report.html import tile
from slm_ray.report.matching import format_flops
from slm_ray.report.page import markdown_of, page_of
from slm_ray.report.steps import load_code
from slm_ray.report.training import TrainedModel, TrainingRecords
from slm_ray.report.training_chart import training_chart
from slm_ray.report.training_data import training_data
from slm_ray.report.training_tables import (
    equal_flops_table,
    matching_table,
    models_table,
    perplexity_of,
    settings_text,
    training_cost_table,
)
from slm_ray.report.wording import count_text

TRAINING_PICTURE = "training.png"
_CURVES_LEAD = "Perplexity on held-out text; the band is one standard error."
_MARKS_LEAD = "A ring is where the first model was as good as another one ended, with what it needed less."
_HOVER_LEAD = "Hover, tap, or use the arrow keys for figures; select a name to bring it out."
_MATCH_LEAD = (
    "A loss counts as reached at the first evaluation that shows it; nothing is interpolated. FLOPs are a model's own, "
    "its teacher's, and those of its search and of the capture of its logits."
)


def training_headline(run: TrainingRecords) -> str:
    """The run's result in a few sentences."""
    best = run.best
    if best is None:
        return "Nothing has been measured yet."
    first, last = best.evaluations[0], best.evaluations[-1]
    sentences = [
        f"{best.name} ({count_text(best.params)} parameters) went from perplexity {perplexity_of(first.loss)} to "
        f"{perplexity_of(last.loss, last.stderr)} on held-out text in {count_text(last.tokens)} tokens."
    ]
    chart, at_once = training_chart(run), []
    for mark in chart.marks:
        other = chart.curves[mark.reference]
        if mark.at.tokens == 0:
            at_once.append(f"{other.model.name} after {count_text(other.points[-1].tokens)} tokens")
        else:
            ratios = [(mark.tokens_text, "tokens"), (mark.flops_text, "FLOPs")]
            how = " and ".join(f"{text} {unit}" for text, unit in ratios if text)
            sentences.append(f"It reached the last loss of {other.model.name} with {how or 'as much'}.")
    if at_once:
        sentences.append(f"Before its first step it was already as good as {' and '.join(at_once)}.")
    return " ".join(sentences)


def training_tiles(run: TrainingRecords) -> str:
    """The run's most important figures, as HTML."""
    best = run.best
    if best is None:
        return ""
    first, last = best.evaluations[0], best.evaluations[-1]
    tiles = [
        tile("Model", count_text(best.params), f"parameters, {best.name}"),
        tile("Perplexity", perplexity_of(last.loss), f"held-out text; {perplexity_of(first.loss)} before training"),
    ]
    if last.bits_per_byte is not None:
        tiles.append(tile("Bits per byte", f"{last.bits_per_byte:.3f}", "comparable across tokenizers"))
    tiles.append(tile("FLOPs", format_flops(best.all_flops(last)), "own, teacher's, search's and capture's"))
    speed = f", {best.tokens_per_second:,.0f} tokens/s" if best.tokens_per_second else ""
    tiles.append(tile("Time", format_seconds(last.seconds), f"in steps{speed}"))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def next_steps(run: TrainingRecords) -> list[tuple[str, str]]:
    """What to do next, each with its code."""
    steps = []
    if not run.finished:
        steps.append(("Continue this run", f"python -m slm_ray.pretrain --resume {shlex.quote(str(run.folder))}"))
    exported = [model for model in run.models if model.folder]
    best: TrainedModel | None = run.best if run.best in exported else next(iter(exported), None)
    if best and best.folder:
        steps.append((f"Load {best.name}", load_code(str(run.folder / best.folder), _needs_remote_code(run, best))))
    return steps


def _needs_remote_code(run: TrainingRecords, model: TrainedModel) -> bool:
    try:
        saved = json.loads((run.folder / str(model.folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(saved, Mapping) and "auto_map" in saved


def curves_section(
    run: TrainingRecords, key: str = "training", file: str = TRAINING_PICTURE, *, marked: bool = True
) -> Section:
    """The curves against tokens and against FLOPs, with tokens-to-match marked.

    Args:
        run: The records.
        key: The picture's name on the page.
        file: The picture that Markdown shows.
        marked: With the places where the first model was as good as another ended.
    """
    chart = training_chart(run, marked=marked)
    if not chart.curves:
        return Section("Training curves", [])
    data, left_out = training_data(chart)
    blocks = [Drawing(key, "curves", data), Picture(file, "Perplexity against tokens, and against FLOPs")]
    lead = " ".join([_CURVES_LEAD, *([_MARKS_LEAD] if chart.marks else []), _HOVER_LEAD])
    return Section("Training curves", [*blocks, *([Words(left_out, small=True)] if left_out else [])], lead)


def training_sections(run: TrainingRecords, prefix: str = "", file: str = TRAINING_PICTURE) -> list[Section]:
    """Everything that a pretraining run's report shows, but for its environment and command."""
    models, matching, equal = models_table(run), matching_table(run), equal_flops_table(run)
    lead = "Perplexity on the held-out text, before the first step and at the last evaluation."
    return [
        curves_section(run, f"{prefix}training", file),
        Section(models.title, [Rows(models)], lead),
        Section(matching.title, [Rows(matching)], _MATCH_LEAD),
        Section(equal.title, [Rows(equal)]),
        cost_section(run),
    ]


def cost_section(run: TrainingRecords) -> Section:
    """What each model cost."""
    cost = training_cost_table(run)
    return Section(cost.title, [Rows(cost)])


def training_chapter(run: TrainingRecords, prefix: str = "", file: str = TRAINING_PICTURE) -> Chapter:
    """A pretraining run's part of a page."""
    sections = [
        *training_sections(run, prefix, file),
        reproduce_section(run.command, next_steps(run)),
        environment_section(run.environment, run.config),
    ]
    return Chapter(
        sections, facts=settings_text(run), headline=training_headline(run), notes=run.notes, tiles=training_tiles(run)
    )


def training_report(run: TrainingRecords) -> Report:
    """The whole report of a pretraining run."""
    return Report("Training", "training report", [training_chapter(run)], TRAINING_PICTURE)


def training_page(run: TrainingRecords) -> str:
    """The report as a page."""
    return page_of(training_report(run))


def training_markdown(run: TrainingRecords) -> str:
    """The report as Markdown; ``training.png`` is expected beside it."""
    return markdown_of(training_report(run))
