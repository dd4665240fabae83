"""The report of a pretraining run, and of a pipeline around it: one HTML file, and Markdown beside its picture."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.core.redact import redact
from slm_ray.core.units import format_seconds
from slm_ray.report.chart import Axis
from slm_ray.report.evaluation import evaluation_lead, evaluation_table
from slm_ray.report.html import code, escape, html_table, section, tile
from slm_ray.report.markdown import code_block, facts_table, markdown_table, plain
from slm_ray.report.matching import format_flops
from slm_ray.report.page import render_page
from slm_ray.report.steps import load_code
from slm_ray.report.tables import Table
from slm_ray.report.training import TrainedModel, TrainingRecords
from slm_ray.report.training_chart import TrainingChart, mark_labels, training_chart
from slm_ray.report.training_tables import (
    equal_flops_table,
    matching_table,
    models_table,
    perplexity_of,
    settings_text,
    training_cost_table,
)
from slm_ray.report.wording import count_text, perplexity_text

_SCRIPTS = ("base.js", "points.js", "training.js", "training_main.js")
_MATCH_LEAD = (
    "A loss counts as reached at the first evaluation that shows it; nothing is interpolated. FLOPs are a model's own, "
    "its teacher's, and those of its search and of the capture of its logits."
)


@dataclass(frozen=True)
class Around:
    """What a pipeline adds to the report of its pretraining.

    Attributes:
        title: Of the page.
        command: The pipeline's command.
        stages: A table of its stages.
        evaluation: What its evaluation found, or None.
        links: Text to relative address of other reports.
    """

    title: str
    command: str | None
    stages: Table
    evaluation: Mapping[str, Any] | None
    links: Mapping[str, str]


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


def _tiles(run: TrainingRecords) -> str:
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
    spent = last.own_flops + last.teacher_flops + (best.search_flops or 0.0) + best.capture_flops
    tiles.append(tile("FLOPs", format_flops(spent), "own, teacher's, search's and capture's"))
    speed = f", {best.tokens_per_second:,.0f} tokens/s" if best.tokens_per_second else ""
    tiles.append(tile("Time", format_seconds(last.seconds), f"in steps{speed}"))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _axis(axis: Axis) -> dict[str, Any]:
    return {"low": axis.low, "high": axis.high, "ticks": axis.ticks}


def training_data(chart: TrainingChart) -> dict[str, Any]:
    """Everything the page's script draws."""
    others = [curve for curve in chart.curves if not curve.is_best]
    return {
        "tokens": _axis(chart.tokens), "flops": _axis(chart.flops), "y": _axis(chart.y),
        "level": {"name": chart.level[0], "value": chart.level[1], "label": perplexity_text(chart.level[1])}
        if chart.level else None,
        "curves": [
            {
                "name": curve.model.name, "color": None if curve.is_best else others.index(curve) % 5,
                "points": [
                    {
                        "tokens": p.tokens, "flops": p.flops, "y": p.perplexity, "error": p.stderr,
                        "facts": [
                            f"{count_text(p.tokens)} tokens, {format_flops(p.flops)} FLOPs in all",
                            f"loss {p.loss:.4f}" + (f" ± {p.stderr:.4f}" if p.stderr else ""),
                            f"perplexity {perplexity_of(p.loss)}",
                        ],
                    }
                    for p in curve.points
                ],
            }
            for curve in chart.curves
        ],
        "marks": [
            {
                "reference": mark.reference, "tokens": mark.at.tokens, "flops": mark.at.flops, "y": mark.at.perplexity,
                "goal": mark.perplexity,
            }
            for mark in chart.marks
        ],
        "labels": {
            quantity: [
                {"tokens": at.tokens, "flops": at.flops, "y": at.perplexity, "text": text}
                for at, text in mark_labels(chart, quantity)
            ]
            for quantity in ("tokens", "flops")
        },
    }  # fmt: skip


def _next_steps(run: TrainingRecords) -> list[tuple[str, str]]:
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


def _tables(run: TrainingRecords, around: Around | None) -> list[tuple[Table, str]]:
    """The tables of the report with what is to be said of them, in order."""
    found = []
    if around and around.evaluation:
        found.append((evaluation_table(around.evaluation), evaluation_lead(around.evaluation)))
    found += [
        (models_table(run), "Perplexity on the held-out text, before the first step and at the last evaluation."),
        (matching_table(run), _MATCH_LEAD), (equal_flops_table(run), ""), (training_cost_table(run), ""),
    ]  # fmt: skip
    if around:
        found.append((around.stages, ""))
    return [(table, lead) for table, lead in found if table.rows]


def _reproduce(run: TrainingRecords, around: Around | None) -> str:
    command = around.command if around and around.command else run.command
    blocks = [code(command) if command else "<p>The command was not recorded.</p>"]
    blocks += [f"<h3>{escape(title)}</h3>{code(text)}" for title, text in _next_steps(run)]
    return "".join(blocks)


def training_page(run: TrainingRecords, around: Around | None = None) -> str:
    """The whole page as text."""
    environment, config = facts_table(run.environment), json.dumps(run.config, indent=2, default=str)
    details = (
        f"<details><summary>Environment</summary>{html_table(environment) if environment.rows else ''}</details>"
        f"<details><summary>Config</summary>{code(config)}</details>"
    )
    addresses = around.links.items() if around else ()
    links = "".join(f'<li><a href="{escape(address)}">{escape(text)}</a></li>' for text, address in addresses)
    fields = {
        "title": escape(around.title if around else "Training"),
        "kind": "pipeline report" if around else "training report",
        "facts": escape(settings_text(run)),
        "headline": escape(training_headline(run)),
        "notes": "".join(f'<p class="note" role="note">{escape(note)}</p>' for note in run.notes),
        "tiles": _tiles(run),
        "tables": "".join(section(table.title, html_table(table), lead=lead) for table, lead in _tables(run, around)),
        "links": section("The stages' own reports", f"<ul>{links}</ul>") if links else "",
        "reproduce": section("Reproduce it, and what to do next", _reproduce(run, around)),
        "details": section("What it ran on", details),
    }
    return render_page("training.html", _SCRIPTS, fields, training_data(training_chart(run)))


def training_markdown(run: TrainingRecords, around: Around | None = None, picture: str = "training.png") -> str:
    """The same as Markdown; the picture is expected at the address given."""
    parts = [f"# {plain(around.title if around else 'Training')}"]
    parts += [f"> **Note:** {plain(note)}" for note in run.notes]
    parts += [plain(training_headline(run)), f"![Perplexity against tokens, and against FLOPs]({picture})"]
    for table, lead in _tables(run, around):
        parts += [f"## {table.title}", *([plain(lead)] if lead else []), markdown_table(table)]
    if around and around.links:
        parts += ["## The stages' own reports", "\n".join(f"- [{k}]({v})" for k, v in around.links.items())]
    environment = facts_table(run.environment)
    parts += [f"## {environment.title}", markdown_table(environment)] if environment.rows else []
    parts += ["## Config", code_block(json.dumps(run.config, indent=2, ensure_ascii=False, default=str), "json")]
    command = around.command if around and around.command else run.command
    parts += ["## How to reproduce", code_block(command or "(the command was not recorded)", "sh")]
    parts += [text for title, block in _next_steps(run) for text in (f"### {title}", code_block(block))]
    return redact("\n\n".join(parts) + "\n")


def stages_table(stages: Mapping[str, Any], order: Sequence[str]) -> Table:
    """What a pipeline's stages took and how each can be run by itself."""
    rows = tuple(
        (name, format_seconds(float(stages[name].get("seconds") or 0)), str(stages[name].get("command")))
        for name in order
        if isinstance(stages.get(name), Mapping)
    )
    return Table("The stages", ("stage", "time", "command"), rows)
