"""The summary a search ends with: what was found, what it cost, and what to do next."""

from __future__ import annotations

from slm_ray.config.units import format_count, format_seconds
from slm_ray.report.fidelity import fidelity_line
from slm_ray.report.fitted import fitted_perplexity, fitted_tokens
from slm_ray.report.model import Model, RunRecords
from slm_ray.report.other_text import other_text_line
from slm_ray.report.records import number
from slm_ray.report.steps import load_command, needs_remote_code, resume_command, tighter_command
from slm_ray.report.tables import (
    beside,
    best_name,
    budget_text,
    candidates_text,
    comparisons,
    phases,
    teacher_perplexity,
    verdict,
)
from slm_ray.report.wording import count_text, perplexity_text, ratio_text, shape_text, share_text

_INDENT = "  "


def _best_lines(run: RunRecords, best: Model) -> list[str]:
    teacher = run.teacher
    of = f" ({share_text(best.params, teacher.params)} of {teacher.name})" if teacher else ""
    lines = [f"{best_name(run).capitalize()}: {count_text(best.params)} parameters{of}"]
    if best.shape:
        lines.append(f"{_INDENT}{shape_text(best.shape, teacher.shape if teacher else None)}")
    if budget := budget_text(run):
        lines.append(f"{_INDENT}budget: {budget}")
    text = "calibration" if best.held_out_perplexity is None else "held-out"
    lines.append(f"Perplexity on {text} text, before any training:")
    rows = [(best_name(run), perplexity_text(best.perplexity, best.stderr), "")]
    reference = teacher_perplexity(run, best)
    if teacher and reference:
        ratio = ratio_text(best.perplexity, reference)
        rows.append((f"teacher {teacher.name}", perplexity_text(reference), f"{best_name(run)} is at {ratio} of this"))
    fitted, stderr = fitted_perplexity(best)
    if fitted is not None:
        against = f"{ratio_text(fitted, reference)} of the teacher's; " if reference else ""
        said = f"{against}fitted on {fitted_tokens(best)}: the exported weights"
        rows.insert(1, ("  with fitted weights", perplexity_text(fitted, stderr), said))
    for item in comparisons(run):
        value = perplexity_text(item.model.held_out_perplexity, item.model.held_out_stderr)
        rows.append((beside(run, item.model), value, verdict(item) if item.ratio else "not measured"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return lines + [f"{_INDENT}{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows]


def _front_line(run: RunRecords) -> str:
    sizes = [model.params for model in run.front if model.params is not None]
    values = [model.perplexity for model in run.front if model.perplexity is not None]
    parts = [f"Front: {len(run.front)} model{'s' if len(run.front) != 1 else ''}"]
    if sizes:
        parts.append(f"{format_count(min(sizes))} to {format_count(max(sizes))} parameters")
    if values:
        parts.append(f"perplexity {perplexity_text(max(values))} to {perplexity_text(min(values))}")
    return ", ".join(parts)


def _spent_lines(run: RunRecords) -> list[str]:
    spent = phases(run)
    lines = []
    if spent:
        parts = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in spent)
        lines.append(f"Spent: {format_seconds(sum(seconds for _, seconds in spent))} ({parts})")
    parts_of = [candidates_text(run)]
    for key, unit in (("forward_tokens", "tokens through a model"), ("flops", "FLOPs")):
        value = number(run.spent.get(key))
        if value is not None:
            parts_of.append(f"{format_count(value) if value < 1e15 else f'{value:.2g}'} {unit}")
    return [*lines, f"{_INDENT if lines else 'Spent: '}{' · '.join(parts_of)}"]


def _next_lines(run: RunRecords, best: Model | None) -> list[str]:
    if not run.finished:
        return [f"Next: {resume_command(run)}"]
    steps = [f"open {run.folder / 'report.html'} in a browser"]
    folder = run.winner_folder(best) if best else None
    if best and folder:
        steps.append(load_command(str(run.folder / folder), needs_remote_code(run, best)))
    if tighter := tighter_command(run):
        steps.append(tighter)
    return [f"{'Next: ' if i == 0 else '      '}{step}" for i, step in enumerate(steps)]


def summary_text(run: RunRecords) -> str:
    """The summary of a run for a terminal.

    Args:
        run: The run's records, of a finished run or of one that is not.
    """
    best = run.best
    lines = list(run.notes)
    lines += _best_lines(run, best) if best else ["No model was found: no candidate has been measured."]
    if best:
        lines.append(_front_line(run))
    if other := other_text_line(run):
        lines.append(other)
    if shortcuts := fidelity_line(run):
        lines.append(shortcuts)
    lines += _spent_lines(run)
    lines.append(f"Files: {run.folder}")
    if run.finished:
        lines.append(f"{_INDENT}front.csv, front.png, report.html, report.md, trials.jsonl")
    if run.winners:
        folders = sorted(run.winners.items())
        lines.append(f"{_INDENT}models: {', '.join(folder for _, folder in folders)}")
    return "\n".join([*lines, *_next_lines(run, best)])
