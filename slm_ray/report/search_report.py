"""The page of a search, and the summary that it ends with in a terminal."""

from __future__ import annotations

import shlex
from pathlib import Path

from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.records.search import RUINED_RATIO, FrontMember
from slm_ray.report.content import Chapter, Figure, Fold, Report, Section, Text, Tile
from slm_ray.report.render import write_report
from slm_ray.report.search import (
    FRONT_PICTURE,
    FRONT_TABLE,
    SearchRun,
    baseline_table,
    beside,
    best_name,
    budget_text,
    candidates_text,
    comparisons,
    cost_table,
    finalists_table,
    fitted_on,
    front_csv,
    front_table,
    load_search,
    other_text_name,
    phases,
    progress_table,
)
from slm_ray.report.search_charts import baselines_picture, front_picture, progress_picture, shape_picture
from slm_ray.report.text import (
    MISSING,
    WITHIN,
    count_text,
    load_code,
    needs_remote_code,
    perplexity_text,
    ratio_text,
    shape_text,
    share_text,
)

_FRONT_LEAD = (
    "Each point is a model: the lower and the further left, the better. Hover or tap a point to see its figures; "
    "select a model of the front to draw its layers below."
)
_FRONT_NOTE = (
    "The front, the teacher and the baselines are shown on held-out text, the other candidates on the calibration text "
    "that the search measures on (a part of it where they were stopped early)."
)
_SHAPE_LEAD = "What is kept of each of the teacher's layers (blue), and what is pruned (grey)."
_COMPARISON_LEAD = (
    "Perplexity on the same held-out text, before any training. ± is one standard error; a difference smaller than the "
    "95% interval is called noise."
)
_OTHER_LEAD = (
    " Nothing was learned or chosen by the other text. Where the ratio to the teacher is much the larger there, the "
    "model is one for the corpus alone."
)
_PROGRESS_LEAD = (
    "The hypervolume of the front: how much of the space of sizes and perplexities it beats. A line that has gone flat "
    "says that more trials would have found little."
)
_FINALISTS_LEAD = (
    "Loss on the calibration text before and after short training. To see how well proxies foretell it, train more "
    "candidates with slm-ray proxies."
)


def ruin_text(run: SearchRun) -> str:
    """What a winner is whose perplexity is that of noise, and what helps; empty where it is none."""
    times = run.ruined(run.best) if run.best else None
    if times is None:
        return ""
    return (
        f"At {times:,.0f} times the teacher's perplexity (more than {RUINED_RATIO:.0f}) this model writes noise until "
        "it is trained: give the search a larger budget, or train the model with its teacher's help."
    )


def _stated(run: SearchRun, best: FrontMember) -> tuple[str, str, str]:
    """The perplexity of a winner as it was exported, its ratio to the teacher's, and what it was before a fit."""
    reference = run.reference(best)

    def times(value: float | None, least: str) -> str:
        ratio = ratio_text(value, reference)
        return "" if ratio == MISSING else f", {ratio}{least}"

    whose = f" the teacher's {perplexity_text(reference)}"
    if best.fitted is None:
        return perplexity_text(best.perplexity, best.stderr), times(best.perplexity, whose), ""
    before = f"with the teacher's own weights {perplexity_text(best.perplexity)}{times(best.perplexity, '')}"
    final = best.final
    return perplexity_text(final.perplexity, final.stderr), times(final.perplexity, whose), before


def _text_of(best: FrontMember) -> str:
    return "calibration" if best.held_out_perplexity is None else "held-out"


def headline(run: SearchRun) -> str:
    """The run's result in two sentences."""
    best = run.best
    if best is None:
        return "No model was found: no candidate has been measured."
    share = f", {share_text(best.params, run.teacher.params)} of {run.teacher.name}" if run.teacher else ""
    value, times, before = _stated(run, best)
    when = "As it was exported, with fitted weights and before any training," if before else "Before any training"
    said = f"{best_name(run).capitalize()} has {count_text(best.params)} parameters{share}. {when} its perplexity on "
    said += f"{_text_of(best)} text is {value}{times}{f'; {before}' if before else ''}."
    return f"{said} {ruin_text(run)}".rstrip()


def tiles(run: SearchRun) -> list[Tile]:
    """The run's most important figures."""
    best, teacher = run.best, run.teacher
    if best is None:
        return []
    share = f", {share_text(best.params, teacher.params)} of {teacher.name}" if teacher else ""
    value, times, before = _stated(run, best)
    said = f"{_text_of(best)} text, before training{times}" + (f"; {before}" if before else "")
    winner = run.winner_of(best)
    weights = f"; {format_bytes(winner.num_bytes)} of {winner.dtype}" if winner else ""
    found = [Tile("Size", count_text(best.params), f"parameters{share}{weights}"), Tile("Perplexity", value, said)]
    if compared := comparisons(run):
        nearest, _, verdict = min(compared, key=lambda one: one[1])
        # Baselines are not fitted, so one is held against the other with the teacher's own weights.
        than = "" if verdict == WITHIN else f" than {best_name(run)}{' before its fit' if before else ''}"
        note = f"{nearest.name}: {verdict}{than}"
        found.append(Tile("Best baseline", perplexity_text(nearest.held_out_perplexity), note))
    found.append(Tile("Front", str(len(run.front)), f"models out of {candidates_text(run).split(' (')[0]}"))
    if seconds := sum(value for _, value in phases(run)):
        found.append(Tile("Time", format_seconds(seconds), "from the first phase to the last"))
    return found


def _front_sections(run: SearchRun, title: str) -> list[Section]:
    """The front, and the layers of the model that is selected in it."""
    if not (run.front or run.candidates or run.baselines):
        return []
    picture, left_out = front_picture(run)
    table = front_table(run)
    note = _FRONT_NOTE if run.candidates and any(m.held_out_perplexity is not None for m in run.front) else ""
    seen = "Perplexity against size: candidates, front, teacher and baselines"
    shape = Figure("front-shape", shape_picture(run), "Heads and neurons of each layer, of the teacher's", link="front")
    return [
        Section(table.title, [
            Figure("front", picture, seen, FRONT_PICTURE, title, link="front"),
            Text(f"{note} {left_out}".strip(), small=True), Fold("The front as a table", table),
        ], _FRONT_LEAD),
        Section("Its shape, layer by layer", [shape], _SHAPE_LEAD),
    ]  # fmt: skip


def search_report(run: SearchRun) -> Report:
    """A search's page."""
    title = f"Sub-networks of {run.teacher.name}" if run.teacher else "Search for sub-networks"
    space = run.options.get("space")
    facts = (f"space {space}" if space else "", budget_text(run), candidates_text(run))
    compared, finalists = baseline_table(run), finalists_table(run)
    other = _OTHER_LEAD if run.result and run.result.corpus.other else ""
    progress = Figure("progress", progress_picture(run), "Hypervolume against evaluations and seconds")
    intervals = Figure("baselines", baselines_picture(run), "Perplexities with their intervals")
    sections = [
        *_front_sections(run, title if run.finished else f"{title} (unfinished run)"),
        Section(compared.title, [intervals, compared], f"{_COMPARISON_LEAD}{other}"),
        Section("Search progress", [progress, Fold("Search progress as a table", progress_table(run))], _PROGRESS_LEAD),
        Section("Finalists after short training", [finalists], _FINALISTS_LEAD),
        Section("What was spent", [cost_table(run)]), *run.closing_sections(next_steps(run)),
    ]  # fmt: skip
    chapter = Chapter(
        sections, facts=" · ".join(filter(None, facts)), headline=headline(run), notes=run.notes, tiles=tiles(run)
    )  # fmt: skip
    return Report(title, "search report", [chapter], {FRONT_TABLE: front_csv(run)})


def build_report(folder: Path) -> list[Path]:
    """Write ``front.csv``, ``front.png``, ``report.md`` and ``report.html`` into a run's folder, finished or not."""
    return write_report(search_report(load_search(folder)), folder)


def _training_command(run: SearchRun, folder: str) -> str:
    given = {name: run.options.get(name) for name in ("teacher", "data")}
    flags = [word for name, value in given.items() if value for word in (f"--{name}", str(value))]
    return shlex.join(["slm-ray", "pretrain", "--student", folder, *flags, "--distill", "full", "--tokens", "10M"])


def winner_needs_code(run: SearchRun, member: FrontMember) -> bool:
    """Whether a winner loads only with ``trust_remote_code=True`` where slm_ray is not installed.

    The saved model says so itself; one that is not there is judged by its sizes.
    """
    winner = run.winner_of(member)
    saved = needs_remote_code(run.folder / winner.folder) if winner else None
    return not member.architecture.is_uniform if saved is None else saved


def next_steps(run: SearchRun) -> list[tuple[str, str]]:
    """What to do next, each with its code; paths are relative to the run folder."""
    best, steps = run.best, []
    winner = run.winner_of(best) if best else None
    if not run.finished:
        steps.append(("Continue this run", f"slm-ray search --resume {shlex.quote(str(run.folder))}"))
    if best and winner:
        code = load_code(winner.folder, winner_needs_code(run, best))
        steps.append((f"Load {best_name(run)} (from this folder)", code))
        steps.append((f"Train {best_name(run)} (from this folder)", _training_command(run, winner.folder)))
    return steps


def summary_text(run: SearchRun) -> str:
    """The summary of a run for a terminal, of a finished run or of one that is not."""
    best = run.best
    lines = list(run.notes)
    lines += _best_lines(run, best) if best else ["No model was found: no candidate has been measured."]
    lines += [_front_line(run)] if best else []
    lines += [said] if (said := _other_text_line(run)) else []
    if found := phases(run):
        parts = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in found)
        lines.append(f"Spent: {format_seconds(sum(seconds for _, seconds in found))} ({parts})")
    spent = [candidates_text(run)]
    if run.result:
        counts = ((run.result.spent.forward_tokens, "tokens through a model"), (run.result.spent.flops, "FLOPs"))
        spent += [f"{format_count(value) if value < 1e15 else f'{value:.2g}'} {unit}" for value, unit in counts]
    lines.append(f"{'  ' if found else 'Spent: '}{' · '.join(spent)}")
    lines.append(f"Files: {run.folder}")
    if run.result:
        lines.append(f"  {FRONT_TABLE}, {FRONT_PICTURE}, report.html, report.md, trials.jsonl")
        models = [f"{one.folder} ({format_bytes(one.num_bytes)} of {one.dtype})" for one in run.result.winners]
        lines += [f"  models: {', '.join(models)}"] if models else []
    return "\n".join([*lines, *_next_lines(run, best)])


def _best_lines(run: SearchRun, best: FrontMember) -> list[str]:
    teacher, name = run.teacher, best_name(run)
    of = f" ({share_text(best.params, teacher.params)} of {teacher.name})" if teacher else ""
    lines = [f"{name.capitalize()}: {count_text(best.params)} parameters{of}"]
    lines.append(f"  {shape_text(best.architecture, teacher.architecture if teacher else None)}")
    lines += [f"  budget: {budget}"] if (budget := budget_text(run)) else []
    lines.append(f"Perplexity on {_text_of(best)} text, before any training:")
    rows, reference = [(name, perplexity_text(best.perplexity, best.stderr), "")], run.reference(best)
    if best.fitted:
        final = best.final
        against = f"{ratio_text(final.perplexity, reference)} of the teacher's; " if reference else ""
        said = f"{against}fitted on {fitted_on(best)}: the exported weights"
        rows.append(("  with fitted weights", perplexity_text(final.perplexity, final.stderr), said))
    if teacher and reference:
        ratio = f"{name} is at {ratio_text(best.perplexity, reference)} of this"
        rows.append((f"teacher {teacher.name}", perplexity_text(reference), ratio))
    verdicts = {other.name: verdict for other, _, verdict in comparisons(run)}
    for other in run.baselines:
        value = perplexity_text(other.held_out_perplexity, other.held_out_stderr)
        rows.append((beside(run, other), value, verdicts.get(other.name, "not measured")))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines += [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    return lines + ([said] if (said := ruin_text(run)) else [])


def _front_line(run: SearchRun) -> str:
    front, values = run.front, [member.perplexity for member in run.front if member.perplexity is not None]
    parts = [f"Front: {len(front)} model{'s' if len(front) != 1 else ''}"]
    parts.append(f"{format_count(front[0].params)} to {format_count(max(m.params for m in front))} parameters")
    if values:
        parts.append(f"perplexity {perplexity_text(max(values))} to {perplexity_text(min(values))}")
    return ", ".join(parts)


def _other_text_line(run: SearchRun) -> str:
    best = run.best
    if best is None or best.other_perplexity is None:
        return ""
    after = best.fitted.after if best.fitted and best.fitted.after.other_perplexity is not None else None
    on = after or best
    ratio = ratio_text(on.other_perplexity, run.teacher.other_perplexity if run.teacher else None)
    times = "" if ratio == MISSING else f", {ratio} of the teacher's"
    shown = perplexity_text(on.other_perplexity, on.other_stderr)
    return f"On {other_text_name(run)}: {shown}{times}{' with fitted weights' if after else ''}"


def _next_lines(run: SearchRun, best: FrontMember | None) -> list[str]:
    if not run.finished:
        return [f"Next: slm-ray search --resume {shlex.quote(str(run.folder))}"]
    lines = [f"Next: open {run.folder / 'report.html'} in a browser"]
    winner = run.winner_of(best) if best else None
    return [*lines, f"      {_training_command(run, str(run.folder / winner.folder))}"] if winner else lines
