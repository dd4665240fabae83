"""The report as Markdown, beside its picture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from slm_ray.core.redact import redact
from slm_ray.report.model import RunRecords
from slm_ray.report.steps import load_code, needs_remote_code, resume_command, tighter_command
from slm_ray.report.tables import (
    Table,
    baseline_table,
    best_name,
    cost_table,
    front_table,
    progress_table,
    teacher_perplexity,
)
from slm_ray.report.wording import MISSING, count_text, perplexity_text, ratio_text, share_text

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code_block(code: str, language: str = "") -> str:
    """A fenced block whose fence is longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown."""
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join(
        "| " + " | ".join(plain(cell) if i != 1 else cell for cell in row) + " |" for i, row in enumerate(lines)
    )


def headline(run: RunRecords) -> str:
    """The run's result in two sentences."""
    best = run.best
    if best is None:
        return "No model was found: no candidate has been measured."
    name = best_name(run).capitalize()
    text = "calibration" if best.held_out_perplexity is None else "held-out"
    first = f"{name} has {count_text(best.params)} parameters"
    if run.teacher and best.params is not None:
        first += f", {share_text(best.params, run.teacher.params)} of {run.teacher.name}"
    second = f"Before any training its perplexity on {text} text is {perplexity_text(best.perplexity, best.stderr)}"
    ratio = ratio_text(best.perplexity, teacher_perplexity(run, best))
    times = "" if ratio == MISSING else f", {ratio} the teacher's"
    return f"{first}. {second}{times}."


def environment_table(run: RunRecords) -> Table:
    """What the run ran on, one line per fact."""
    return facts_table(run.environment)


def facts_table(environment: Mapping[str, Any]) -> Table:
    """What ``environment.json`` says, one line per fact."""
    rows = []
    for name, value in environment.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        rows.append((str(name).replace("_", " "), MISSING if shown is None else str(shown)))
    return Table("Environment", ("what", "which"), tuple(rows))


def next_steps(run: RunRecords) -> list[tuple[str, str]]:
    """What to do next, each with its code; paths are relative to the run folder."""
    best = run.best
    folder = run.winner_folder(best) if best else None
    steps = []
    if not run.finished:
        steps.append(("Continue this run", resume_command(run)))
    if best and folder:
        steps.append((f"Load {best_name(run)} (from this folder)", load_code(folder, needs_remote_code(run, best))))
    if tighter := tighter_command(run):
        steps.append(("Search again with a tighter budget", tighter))
    return steps


def report_markdown(run: RunRecords) -> str:
    """The whole report; ``front.png`` is expected beside it."""
    of = f" of {plain(run.teacher.name)}" if run.teacher else ""
    parts = [f"# Search{of}", *(f"> **Note:** {plain(note)}" for note in run.notes), plain(headline(run))]
    parts.append("![Perplexity against size: candidates, front, teacher and baselines](front.png)")
    for table in (baseline_table(run), front_table(run), cost_table(run), progress_table(run), environment_table(run)):
        if table.rows:
            parts += [f"## {table.title}", markdown_table(table)]
    parts += ["## Config", code_block(json.dumps(run.config, indent=2, ensure_ascii=False, default=str), "json")]
    parts += ["## How to reproduce", code_block(run.command or "(the command is recorded when a run finishes)", "sh")]
    for title, code in next_steps(run):
        parts += [f"### {title}", code_block(code)]
    return redact("\n\n".join(parts) + "\n")
