"""The report of a search: the front, the winner's shape, progress, comparison and cost."""

from __future__ import annotations

import math

from slm_ray.config.units import format_seconds
from slm_ray.report.blocks import Block, Chapter, Drawing, Fold, Markup, Picture, Report, Rows, Section
from slm_ray.report.facts import environment_section, reproduce_section
from slm_ray.report.fidelity import fidelity_section
from slm_ray.report.finalists import finalists_section
from slm_ray.report.fitted import fitted_perplexity
from slm_ray.report.html import escape, tile
from slm_ray.report.model import Model, RunRecords
from slm_ray.report.other_text import other_text_section
from slm_ray.report.page import markdown_of, page_of
from slm_ray.report.payload import MOST_CANDIDATES, front_data, progress_data
from slm_ray.report.steps import next_steps
from slm_ray.report.tables import (
    baseline_table,
    best_name,
    budget_text,
    candidates_text,
    comparisons,
    cost_table,
    front_table,
    phases,
    progress_table,
    teacher_perplexity,
    verdict,
)
from slm_ray.report.wording import MISSING, count_text, perplexity_text, ratio_text, share_text

_PHASE_COLORS = 6
FRONT_PICTURE = "front.png"
_FRONT_LEAD = (
    "Each point is a model: the lower and the further left, the better. Hover, tap or tab to a point to see it; select "
    "it (click, or Enter) to draw its layers below."
)
_SHAPE_LEAD = "What is kept of each of the teacher's layers (filled) and what is cut away (outlined)."
_COMPARISON_LEAD = (
    "Perplexity on the same held-out text, before any training, on a logarithmic line. ± is one standard error; a "
    "difference smaller than the 95% interval is called noise."
)
_PROGRESS_LEAD = (
    "The hypervolume of the front: how much of the space of sizes and perplexities it beats. A line that has gone flat "
    "says that more trials would have found little."
)


def headline(run: RunRecords) -> str:
    """The run's result in two sentences."""
    best = run.best
    if best is None:
        return "No model was found: no candidate has been measured."
    name = best_name(run).capitalize()
    first = f"{name} has {count_text(best.params)} parameters"
    if run.teacher and best.params is not None:
        first += f", {share_text(best.params, run.teacher.params)} of {run.teacher.name}"
    value, times, cut = _stated(run, best)
    when = "As it was exported, with fitted weights and before any training," if cut else "Before any training"
    return f"{first}. {when} its perplexity on {_text_of(best)} text is {value}{times}{f'; {cut}' if cut else ''}."


def _text_of(best: Model) -> str:
    return "calibration" if best.held_out_perplexity is None else "held-out"


def _stated(run: RunRecords, best: Model) -> tuple[str, str, str]:
    """The perplexity of a winner as it was exported, its ratio to the teacher's, and what it was before a fit.

    The last is empty where no weights were fitted, the second where the teacher's perplexity is not known.
    """
    reference = teacher_perplexity(run, best)

    def times(value: float | None, least: str) -> str:
        ratio = ratio_text(value, reference)
        return "" if ratio == MISSING else f", {ratio}{least}"

    whose = f" the teacher's {perplexity_text(reference)}"
    fitted, stderr = fitted_perplexity(best)
    if fitted is None:
        return perplexity_text(best.perplexity, best.stderr), times(best.perplexity, whose), ""
    cut = f"as cut out {perplexity_text(best.perplexity)}{times(best.perplexity, '')}"
    return perplexity_text(fitted, stderr), times(fitted, whose), cut


def _tiles(run: RunRecords) -> str:
    best, teacher = run.best, run.teacher
    if best is None:
        return ""
    share = f", {share_text(best.params, teacher.params)} of {teacher.name}" if teacher and teacher.params else ""
    tiles = [tile("Size", count_text(best.params), f"parameters{share}")]
    value, times, cut = _stated(run, best)
    said = f"{_text_of(best)} text, before training{times}" + (f"; {cut}" if cut else "")
    tiles.append(tile("Perplexity", value, said))
    nearest = min((item for item in comparisons(run) if item.ratio), key=lambda item: item.ratio or 0, default=None)
    if nearest:
        value = perplexity_text(nearest.model.held_out_perplexity)
        like_it = " as cut out" if cut else ""  # baselines are not fitted, so one is held against the other as it was
        than = "" if nearest.is_clear is False else f" than {best_name(run)}{like_it}"
        tiles.append(tile("Best baseline", value, f"{nearest.model.name}: {verdict(nearest)}{than}"))
    tiles.append(tile("Front", str(len(run.front)), f"models out of {candidates_text(run).split(' (')[0]}"))
    if seconds := sum(value for _, value in phases(run)):
        tiles.append(tile("Time", format_seconds(seconds), "from the first phase to the last"))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _dots(run: RunRecords) -> str:
    """Held-out perplexities on one logarithmic line each, to see at a glance what is close to what."""
    shown = [(best_name(run), "best", run.best), ("teacher", "teacher", run.teacher)]
    shown += [(model.name, "base", model) for model in run.baselines]
    rows = [(name, kind, m.held_out_perplexity) for name, kind, m in shown if m is not None and m.held_out_perplexity]
    if len(rows) < 2:
        return ""
    low = math.log10(min(value for _, _, value in rows if value) * 0.9)
    high = math.log10(max(value for _, _, value in rows if value))
    items = []
    for name, kind, value in sorted(rows, key=lambda row: row[2] or 0):
        at = 100 * (math.log10(value or 1) - low) / (high - low)
        track = f'<span class="track"><i style="width:{at:.2f}%"></i><b style="left:{at:.2f}%"></b></span>'
        figure = f'<span class="value">{perplexity_text(value)}</span>'
        items.append(f'<div class="dot {kind}"><span class="name">{escape(name)}</span>{track}{figure}</div>')
    return f'<div class="dots" aria-hidden="true">{"".join(items)}</div>'


def _time_bar(run: RunRecords) -> str:
    spent = [(name, seconds) for name, seconds in phases(run) if seconds > 0]
    whole = sum(seconds for _, seconds in spent)
    if not whole:
        return ""
    parts = [
        f'<i class="p{index % _PHASE_COLORS}" style="flex-grow:{seconds / whole:.4f}"></i>'
        for index, (_, seconds) in enumerate(spent)
    ]
    keys = [
        f'<li><i class="p{index % _PHASE_COLORS}"></i>{escape(name)} {format_seconds(seconds)}</li>'
        for index, (name, seconds) in enumerate(spent)
    ]
    return f'<div class="bar" aria-hidden="true">{"".join(parts)}</div><ul class="keys">{"".join(keys)}</ul>'


def picture_sections(
    run: RunRecords, key: str = "front", file: str = FRONT_PICTURE, most: int = MOST_CANDIDATES
) -> list[Section]:
    """The front, and the shape of the model that is selected in it.

    Args:
        run: The search's records.
        key: The front's name on the page.
        file: The picture that Markdown shows.
        most: How many candidates off the front are drawn.
    """
    data = front_data(run, most)
    if not (data["front"] or data["candidates"] or data["baselines"]):
        return []
    winners = [index for index, model in enumerate(reversed(run.front)) if model.winner is not None]
    front, alt = front_table(run), "Perplexity against size: candidates, front, teacher and baselines"
    blocks: list[Block] = [Drawing(key, "front", data), Picture(file, alt), Fold("The front as a table",
                           [Rows(front, marked=winners)])]  # fmt: skip
    sections = [Section(front.title, blocks, _FRONT_LEAD)]
    if any("shape" in point for point in (*data["front"], *data["baselines"])):
        shape = Drawing(f"{key}-shape", "shape", {"of": key})
        sections.append(Section("Its shape, layer by layer", [shape], _SHAPE_LEAD))
    return sections


def progress_section(run: RunRecords, key: str = "progress") -> Section:
    """Hypervolume against evaluations and against time."""
    data = progress_data(run)
    blocks: list[Block] = [Drawing(key, "progress", data)] if data else []
    return Section("Search progress", [*blocks, Fold("Search progress as a table", [Rows(progress_table(run))])],
                   _PROGRESS_LEAD)  # fmt: skip


def search_sections(
    run: RunRecords, prefix: str = "", file: str = FRONT_PICTURE, most: int = MOST_CANDIDATES
) -> list[Section]:
    """Everything that a search's report shows, but for its environment and command.

    Args:
        run: Its records.
        prefix: Of the names of its pictures, where a page has several runs.
        file: The picture that Markdown shows.
        most: How many candidates off the front are drawn.
    """
    has_others = run.baselines or (run.best and run.teacher)
    comparison: list[Block] = [Markup(_dots(run)), Rows(baseline_table(run))] if has_others else []
    return [
        *picture_sections(run, f"{prefix}front", file, most),
        Section("Against the teacher and the baselines", comparison, _COMPARISON_LEAD),
        other_text_section(run),
        progress_section(run, f"{prefix}progress"),
        finalists_section(run, f"{prefix}finalists"),
        fidelity_section(run, f"{prefix}fidelity"),
        Section("What was spent", [Markup(_time_bar(run)), Rows(cost_table(run))]),
    ]


def search_title(run: RunRecords) -> str:
    """What a search was."""
    return f"Sub-networks of {run.teacher.name}" if run.teacher else "Search for sub-networks"


def search_chapter(
    run: RunRecords, prefix: str = "", file: str = FRONT_PICTURE, most: int = MOST_CANDIDATES
) -> Chapter:
    """A search's part of a page; see :func:`search_sections`."""
    facts = [
        f"space {run.config['space']}" if run.config.get("space") else "",
        budget_text(run) or "",
        candidates_text(run),
    ]
    sections = [
        *search_sections(run, prefix, file, most),
        reproduce_section(run.command, next_steps(run), "The command is recorded when a run finishes."),
        environment_section(run.environment, run.config),
    ]
    return Chapter(
        sections, facts=" · ".join(fact for fact in facts if fact), headline=headline(run), notes=run.notes,
        tiles=_tiles(run),
    )  # fmt: skip


def search_report(run: RunRecords) -> Report:
    """The whole report of a search."""
    return Report(search_title(run), "search report", [search_chapter(run)], FRONT_PICTURE)


def report_page(run: RunRecords) -> str:
    """The report as a page."""
    return page_of(search_report(run))


def report_markdown(run: RunRecords) -> str:
    """The report as Markdown; ``front.png`` is expected beside it."""
    return markdown_of(search_report(run))
