"""One page of several runs: what they have together, then each of them; a pipeline's page is of its stages."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_seconds
from slm_ray.records.evaluation import EvaluationResult
from slm_ray.records.pipeline import PipelineState
from slm_ray.records.run import RunRecord
from slm_ray.records.training import TrainInputs
from slm_ray.report.charts import Looks, Picture, Row, lines
from slm_ray.report.content import Block, Chapter, Code, Figure, Report, Section, Table, Text
from slm_ray.report.costs import cost_section, costs_of, earlier_costs
from slm_ray.report.evaluation import EvaluationRun, short_names, text_of
from slm_ray.report.evaluation_tasks import task_models, task_rows
from slm_ray.report.kinds import KINDS, PIPELINE, PipelineRun, Run
from slm_ray.report.placing import Axis, perplexity_axis
from slm_ray.report.proxies import correlations_table
from slm_ray.report.reading import RunReader
from slm_ray.report.render import write_report
from slm_ray.report.search import SearchRun
from slm_ray.report.search_charts import front_axes, tip_of
from slm_ray.report.text import MISSING, count_text, fixed, perplexity_text
from slm_ray.report.training import TrainingRun, matching_table, models_table
from slm_ray.report.training_report import curves_section

_FRONTS_PICTURE = "fronts.png"
_OPEN_RUNS, _MARKED_CURVES = 3, 8
_FRONTS_LEAD = (
    "The front of every search; the lower and the further left, the better. Hover or tap for figures; select a name to "
    "bring it out."
)


def write_run(run: Run) -> list[Path]:
    """Write a run's own report, in its own folder."""
    return write_report(pipeline_report(run.records) if run.kind == PIPELINE else run.report(), run.folder)


def single_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs, and those that pipelines hold, with names: their folders by as few parts as tell them apart."""
    found = [one for run in runs for one in (run.records.runs if run.kind == PIPELINE else (run,))]
    short = short_names([str(run.folder.absolute()) for run in found])
    return [replace(run, name=short[str(run.folder.absolute())]) for run in found]


def merge_training(runs: Sequence[tuple[str, TrainingRun]]) -> TrainingRun:
    """All models of several runs as if they were of one, with their run in their names."""
    models = tuple(
        replace(model, name=name if len(run.models) == 1 else f"{name}: {model.name}")
        for name, run in runs
        for model in run.models
    )
    levels, results = {run.level for _, run in runs}, [run.result for _, run in runs]
    level = levels.pop() if len(levels) == 1 else None
    return replace(runs[0][1], notes=(), models=models, level=level, result=results[0] if all(results) else None)


def held_out_note(runs: Sequence[tuple[str, TrainingRun]]) -> str:
    """A sentence where runs were not measured on the same tokens; empty where they were, or where that is not known."""
    inputs = [RunReader(run.folder).record(TrainInputs) for _, run in runs]
    digests = {found.held_out_tokens for found in inputs if found}
    if len(digests) < 2:
        return ""
    return (
        f"These runs were measured on {len(digests)} different sets of held-out tokens: compare perplexities only "
        "inside a run, or of runs with the same text."
    )


def fronts_picture(runs: Sequence[tuple[str, SearchRun]]) -> Picture | None:
    """The fronts of several searches; None where fewer than two have one, or sizes are not the same."""
    shown = [(name, run) for name, run in runs if any(member.perplexity for member in run.front)]
    if len(shown) < 2 or len({run.quantity for _, run in shown}) > 1:
        return None
    teachers = {
        (run.teacher.name, run.teacher.perplexity) for _, run in shown if run.teacher and run.teacher.perplexity
    }
    rows: list[Row] = [
        {"series": name, "x": m.cost[run.quantity], "y": m.perplexity, "tip": tip_of(run, m, f"{name}: {m.name}")}
        for name, run in shown
        for m in run.front
        if m.perplexity
    ]  # fmt: skip
    axes = [front_axes(run) for _, run in shown]
    x = replace(axes[0][0], low=min(x.low for x, _ in axes), high=max(row["x"] for row in rows) * 1.03)
    y = perplexity_axis([row["y"] for row in rows] + [value for _, value in teachers], [], axes[0][1].title)
    levels = [(f"teacher {name}", value) for name, value in sorted(teachers)]
    looks = Looks(tuple(name for name, _ in shown), shown[0][0])
    return Picture((lines(rows, looks, Axis(x.title, x.low, x.high), y, levels=levels),))


def fronts_table(runs: Sequence[tuple[str, SearchRun]]) -> Table:
    """A row per search: its best model beside its teacher."""
    rows = []
    for name, run in runs:
        best, teacher = run.best, run.teacher
        rows.append((
            name, teacher.name if teacher else MISSING, str(run.options.get("space") or MISSING),
            count_text(len(run.candidates)), count_text(len(run.front)), count_text(best.params if best else None),
            perplexity_text(best.perplexity, best.stderr) if best else MISSING,
            perplexity_text(teacher.held_out_perplexity if teacher else None),
        ))  # fmt: skip
    header = ("run", "teacher", "space", "candidates", "front", "winner's parameters", "its perplexity", "teacher's")
    return Table("The searches", header, tuple(rows)).compact()


def evaluations_table(runs: Sequence[tuple[str, EvaluationRun]]) -> Table:
    """A row per model of each evaluation: bits per byte of every text, and averages of suites (tasks without one)."""
    domains = list(dict.fromkeys(domain for _, run in runs for domain in run.domains))
    shown = [(name, run, _task_columns(run)) for name, run in runs]
    tasks = list(dict.fromkeys(title for _, _, columns in shown for title in columns))
    rows = []
    for name, run, columns in shown:
        for model in run.models:
            bits = [fixed(text.bits_per_byte) if (text := text_of(model, domain)) else MISSING for domain in domains]
            scores = [columns.get(title, {}).get(model.name, MISSING) for title in tasks]
            rows.append((name, run.called(model.name), count_text(model.params), *bits, *scores))
    header = ("run", "model", "parameters", *(f"bits per byte, {domain}" for domain in domains), *tasks)
    return Table("The evaluations", header, tuple(rows)).compact()


def _task_columns(run: EvaluationRun) -> dict[str, dict[str, str]]:
    rows = [row for row in task_rows(run) if row.kind != "member" and row.is_share]
    chosen = [row for row in rows if row.kind == "average"] or rows
    models = task_models(run)
    return {
        row.title: {model.name: row.cell(place).removesuffix(" ≈") for place, model in enumerate(models)}
        for row in chosen
    }


def _overview(runs: Sequence[Run], chapters: Sequence[Chapter]) -> Section:
    rows = []
    for run, chapter in zip(runs, chapters, strict=True):
        count = len(run.records.notes)
        state = f"{count} {'note' if count == 1 else 'notes'}" if count else "complete"
        rows.append((run.name, KINDS[run.kind].name, chapter.headline, state))
    return Section("Overview", [Table("Overview", ("run", "kind", "result", "records"), tuple(rows))])


def pipeline_report(run: PipelineRun) -> Report:
    """The page of a pipeline: what all stages cost and how to run each, then the stages."""
    chapters = []
    for stage in run.runs:
        title = KINDS[stage.kind].name.capitalize()
        chapters.append(replace(stage.report().chapters[0], title=title, anchor=stage.kind))
    stages = [(name, format_seconds(one.seconds), one.command) for name, one in run.state.stages.items()]
    table = Table("The stages", ("stage", "time", "command"), tuple(stages))
    costs = [*run.capture, *(cost for stage in reversed(run.runs) for cost in costs_of(stage.records))]
    first = chapters[0] if chapters else Chapter([])
    sections = [Section(table.title, [table]), cost_section(costs), run.closing_sections()[0]]
    together = Chapter(
        sections, "The pipeline", "pipeline", first.facts, first.headline, notes=run.notes, tiles=first.tiles
    )  # fmt: skip
    return Report(f"Pipeline of {run.state.teacher or 'its teacher'}", "pipeline report", [together, *chapters])


def _shared_training(trainings: Sequence[tuple[str, TrainingRun]]) -> list[Section]:
    if len(trainings) < 2:
        return []
    merged = merge_training(trainings)
    marked = len(merged.measured) <= _MARKED_CURVES
    curves = curves_section(merged, "all-training", marked=marked)
    said: list[Block] = [Text(held_out_note(trainings))]
    if not marked:
        said.append(Text("Where one model matched another is marked in the pictures of the single runs.", small=True))
    matching, models = matching_table(merged, of_best=True), models_table(merged)
    return [
        replace(curves, title="Training curves of all runs", blocks=[*said, *curves.blocks]),
        Section("The trained models", [models]),
        Section(matching.title, [matching],
                "A loss counts as reached at the first evaluation that shows it. FLOPs count everything."),
    ]  # fmt: skip


def set_report(given: Sequence[Run], command: str) -> Report:
    """The report of several runs; ``command`` makes it again."""
    runs, pipelines = single_runs(given), [run.records for run in given if run.kind == PIPELINE]

    def of_kind(kind: str) -> list[tuple[str, Any]]:
        return [(run.name, run.records) for run in runs if run.kind == kind]

    searches, trainings, evaluations = of_kind("search"), of_kind("pretrain"), of_kind("evaluate")
    chapters = []
    for place, run in enumerate(runs):
        # The curves of all trainings are one picture; a page of many would write one more for each.
        files = run.kind != "pretrain" or len(trainings) == 1
        chapter = run.report().chapters[0].prefixed(f"run{place}-", files=files)
        title = f"{KINDS[run.kind].name.capitalize()} {run.name}"
        chapters.append(replace(chapter, title=title, anchor=f"run{place}", folded=len(runs) > _OPEN_RUNS))
    fronts = Figure("fronts", fronts_picture(searches), "The fronts", _FRONTS_PICTURE, "The fronts of all searches")
    proxies = [replace(correlations_table(run), title=name, titled=True) for name, run in of_kind("proxies")]
    costs = [cost for pipeline in pipelines for cost in pipeline.capture]
    costs += [replace(cost, run=run.name) for run in runs for cost in costs_of(run.records)]
    notes = [note for pipeline in pipelines for note in pipeline.notes if note.split(":")[0] not in KINDS]
    notes += [f"{run.name}: {note}" for run in runs for note in run.records.notes]
    sections = [
        _overview(runs, chapters),
        Section("The fronts of all searches", [fronts, fronts_table(searches)] if len(searches) > 1 else [],
                _FRONTS_LEAD if fronts else ""),
        *_shared_training(trainings),
        Section("The evaluations", [evaluations_table(evaluations)] if len(evaluations) > 1 else [],
                "Bits per byte can be compared whatever the tokenizers are."),
        Section("Proxies against trained quality", proxies if len(proxies) > 1 else []),
        cost_section([*costs, *earlier_costs(trainings, costs)]),
        Section("How to reproduce", [Code(command, "sh")], "This report; a run's own command is with the run."),
    ]  # fmt: skip
    names = {name: (kind.name, kind.plural) for name, kind in KINDS.items()} | {PIPELINE: ("pipeline", "pipelines")}
    counts = [(sum(run.kind == kind for run in given), name) for kind, name in names.items()]
    counted = ", ".join(f"{count} {name[count > 1]}" for count, name in counts if count)
    title = f"{len(given)} runs: {counted}" if len(runs) > 1 else chapters[0].title
    return Report(title, "report of runs", [Chapter(sections, "All runs", "all", notes=notes), *chapters])


def write_set_report(runs: Sequence[Run], folder: Path, argv: Sequence[str]) -> list[Path]:
    """Write one report of several runs into a folder of its own; ``argv`` are the command's arguments."""
    if any((folder / name).exists() for name in (RunRecord.FILE, PipelineState.FILE, EvaluationResult.FILE)):
        raise UserError(f"--out {folder} holds a run, whose own report would be lost: choose another folder")
    return write_report(set_report(runs, shlex.join(["slm-ray", "report", *argv])), folder)
