"""One report of several runs: what they have together, then each of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.records.files import write_bytes, write_text
from slm_ray.report.blocks import Block, Chapter, CodeText, Drawing, Picture, Report, Rows, Section, Words
from slm_ray.report.costs import (
    Cost,
    cost_section,
    earlier_costs,
    evaluation_costs,
    search_costs,
    summed_training_costs,
)
from slm_ray.report.evaluation_page import evaluation_chapter
from slm_ray.report.evaluation_plot import draw_evaluation
from slm_ray.report.evaluation_records import RESULT_FILE
from slm_ray.report.page import markdown_of, page_of
from slm_ray.report.panels import draw_panels
from slm_ray.report.pipeline import STATE_FILE, pipeline_chapter, pipeline_costs
from slm_ray.report.plots import draw_front
from slm_ray.report.proxies import correlations_table, proxy_chapter, proxy_costs, proxy_panels
from slm_ray.report.runs import EVALUATION, PIPELINE, PROXIES, SEARCH, TRAINING, Run
from slm_ray.report.search_page import search_chapter
from slm_ray.report.set_data import (
    best_matching_table,
    evaluations_table,
    fronts_data,
    fronts_table,
    held_out_note,
    merge_training,
    run_names,
)
from slm_ray.report.set_plot import draw_lines
from slm_ray.report.tables import Table
from slm_ray.report.training_page import curves_section, training_chapter
from slm_ray.report.training_plot import draw_training
from slm_ray.report.training_tables import models_table
from slm_ray.runtime.runfolder import CONFIG_FILE

_FRONTS_PICTURE, _TRAINING_PICTURE = "fronts.png", "training.png"
_OPEN_RUNS, _MARKED_CURVES, _CANDIDATES_IN_ALL = 3, 8, 6000
_KINDS = {SEARCH: "search", TRAINING: "pretraining", PIPELINE: "pipeline", EVALUATION: "evaluation", PROXIES: "proxies"}
_PLURALS = {
    SEARCH: "searches", TRAINING: "pretraining runs", PIPELINE: "pipelines", EVALUATION: "evaluations",
    PROXIES: "reports on proxies",
}  # fmt: skip
_FRONTS_LEAD = (
    "The front of every search; the lower and the further left, the better. Hover, tap, or use the arrow keys to see a "
    "model's layers; select a name to bring it out."
)


def _trainings(runs: Sequence[tuple[str, Run]]) -> list[tuple[str, Any]]:
    found = [(name, run.records) for name, run in runs if run.kind == TRAINING]
    return found + [(name, run.records.training) for name, run in runs if run.kind == PIPELINE]


def _searches(runs: Sequence[tuple[str, Run]]) -> list[tuple[str, Any]]:
    found = [(name, run.records) for name, run in runs if run.kind == SEARCH]
    inside = [(name, run.records.search) for name, run in runs if run.kind == PIPELINE and run.records.search]
    return found + inside


def _evaluations(runs: Sequence[tuple[str, Run]]) -> list[tuple[str, Any]]:
    found = [(name, run.records) for name, run in runs if run.kind == EVALUATION]
    inside = [(name, run.records.evaluation) for name, run in runs if run.kind == PIPELINE and run.records.evaluation]
    return found + inside


def _overview(runs: Sequence[tuple[str, Run]], chapters: Sequence[Chapter]) -> Section:
    rows = tuple(
        (
            name, _KINDS[run.kind], chapter.headline,
            f"{len(run.notes)} {'note' if len(run.notes) == 1 else 'notes'}" if run.notes else "whole",
        )
        for (name, run), chapter in zip(runs, chapters, strict=True)
    )  # fmt: skip
    return Section("Overview", [Rows(Table("Overview", ("run", "kind", "result", "records"), rows))])


def _fronts(searches: list[tuple[str, Any]]) -> Section:
    if len(searches) < 2:
        return Section("Fronts", [])
    data = fronts_data(searches)
    drawn: list[Block] = [Drawing("fronts", "curves", data), Picture(_FRONTS_PICTURE, "The fronts")] if data else []
    return Section("The fronts of all searches", [*drawn, Rows(fronts_table(searches))], _FRONTS_LEAD if data else "")


def _training(trainings: list[tuple[str, Any]]) -> list[Section]:
    if len(trainings) < 2:
        return []
    merged, note = merge_training(trainings), held_out_note(trainings)
    marked = sum(bool(model.evaluations) for model in merged.models) <= _MARKED_CURVES
    curves = curves_section(merged, "all-training", _TRAINING_PICTURE, marked=marked)
    said: list[Block] = [Words(note)] if note else []
    if not marked:
        said.append(Words("Where one model matched another is marked in the pictures of the single runs.", small=True))
    matching, models = best_matching_table(merged), models_table(merged)
    return [
        replace(curves, title="Training curves of all runs", blocks=[*said, *curves.blocks]),
        Section("The trained models", [Rows(models)]),
        Section(matching.title, [Rows(matching)],
                "A loss counts as reached at the first evaluation that shows it. FLOPs count everything."),
    ]  # fmt: skip


def _proxies(runs: Sequence[tuple[str, Run]]) -> Section:
    found = [(name, correlations_table(run.records)) for name, run in runs if run.kind == PROXIES]
    if len(found) < 2:
        return Section("Proxies", [])
    rows = [Rows(replace(table, title=name), titled=True) for name, table in found]
    return Section("Proxies against trained quality", rows)


def _costs(runs: Sequence[tuple[str, Run]]) -> Section:
    makers: dict[str, Callable[[Any, str], list[Cost]]] = {
        SEARCH: search_costs, TRAINING: summed_training_costs, EVALUATION: evaluation_costs, PROXIES: proxy_costs,
        PIPELINE: lambda records, name: [replace(cost, run=name) for cost in pipeline_costs(records)],
    }  # fmt: skip
    rows = [cost for name, run in runs for cost in makers[run.kind](run.records, name)]
    return cost_section([*rows, *earlier_costs(_trainings(runs), rows)])


def _chapter(name: str, run: Run, place: int, most: int, *, folded: bool) -> Chapter:
    prefix = f"run{place}-"
    makers: dict[str, Callable[[], Chapter]] = {
        SEARCH: lambda: search_chapter(run.records, prefix, picture_of(run, place), most),
        TRAINING: lambda: training_chapter(run.records, prefix, ""),
        PIPELINE: lambda: pipeline_chapter(run.records, prefix),
        EVALUATION: lambda: evaluation_chapter(run.records, prefix, picture_of(run, place)),
        PROXIES: lambda: proxy_chapter(run.records, prefix, picture_of(run, place)),
    }
    title = f"{_KINDS[run.kind].capitalize()} {name}"
    return replace(makers[run.kind](), title=title, anchor=f"run{place}", folded=folded)


def picture_of(run: Run, place: int) -> str:
    """The file of a run's own picture beside the report; empty for kinds that only have one together."""
    return f"{run.kind}-{place}.png" if run.kind in (SEARCH, EVALUATION, PROXIES) else ""


def set_report(runs: Sequence[Run], command: str) -> Report:
    """The report of several runs.

    Args:
        runs: Their records.
        command: What makes the report again.
    """
    named = list(zip(run_names([run.folder for run in runs]), runs, strict=True))
    searches = _searches(named)
    most = _CANDIDATES_IN_ALL // max(len(searches), 1)
    folded = len(runs) > _OPEN_RUNS
    chapters = [_chapter(name, run, place, most, folded=folded) for place, (name, run) in enumerate(named)]
    evaluations = _evaluations(named)
    compared = evaluations_table(evaluations) if len(evaluations) > 1 else Table("The evaluations", (), ())
    together = Chapter(
        [
            _overview(named, chapters),
            _fronts(searches),
            *_training(_trainings(named)),
            Section(compared.title, [Rows(compared)], "Bits per byte can be compared whatever the tokenizers are."),
            _proxies(named),
            _costs(named),
            Section("How to reproduce", [CodeText(command, "sh")], "This report; a run's own command is with the run."),
        ],
        title="All runs",
        anchor="all",
        notes=[f"{name}: {note}" for name, run in named for note in run.notes],
    )
    title = f"{len(runs)} runs: {_counted(runs)}" if len(runs) > 1 else chapters[0].title
    return Report(title, "report of runs", [together, *chapters])


def _counted(runs: Sequence[Run]) -> str:
    counts = {kind: sum(run.kind == kind for run in runs) for kind in _KINDS}
    return ", ".join(f"{n} {_PLURALS[kind] if n > 1 else _KINDS[kind]}" for kind, n in counts.items() if n)


def _draw(runs: Sequence[Run]) -> dict[str, bytes]:
    """The pictures that Markdown shows."""
    named = list(zip(run_names([run.folder for run in runs]), runs, strict=True))
    searches, trainings = _searches(named), _trainings(named)
    drawn: dict[str, bytes] = {}
    if len(searches) > 1 and (data := fronts_data(searches)):
        drawn[_FRONTS_PICTURE] = draw_lines(data, "The fronts of all searches")
    if len(trainings) > 1:
        merged = merge_training(trainings)
        drawn[_TRAINING_PICTURE] = draw_training(merged, marked=len(merged.models) <= _MARKED_CURVES)
    draw: dict[str, Callable[[Any], bytes]] = {
        SEARCH: draw_front, EVALUATION: draw_evaluation,
        PROXIES: lambda records: draw_panels(proxy_panels(records), "Proxies against trained quality"),
    }  # fmt: skip
    for place, run in enumerate(runs):
        if file := picture_of(run, place):
            drawn[file] = draw[run.kind](run.records)
    return drawn


def write_set_report(runs: Sequence[Run], folder: Path, argv: Sequence[str]) -> list[Path]:
    """Make one report of several runs: pictures, ``report.md`` and ``report.html`` in a folder of its own.

    Args:
        runs: Their records.
        folder: Where it goes.
        argv: The command's arguments, for the record.

    Raises:
        UserError: The folder holds a run itself, or cannot be written.
    """
    if any((folder / name).exists() for name in (CONFIG_FILE, STATE_FILE, RESULT_FILE)):
        raise UserError(f"--out {folder} holds a run, whose own report would be lost: choose another folder")
    report = set_report(runs, shlex.join(["python", "-m", "slm_ray.report", *argv]))
    drawn = _draw(runs)
    for name, data in drawn.items():
        write_bytes(folder / name, data)
    write_text(folder / "report.md", markdown_of(report))
    write_text(folder / "report.html", page_of(report))
    return [folder / name for name in (*drawn, "report.md", "report.html")]
