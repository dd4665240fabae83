"""One page of several runs: what they have together, then each of them. Also: which kind of run a folder holds."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.records.base import find_record
from slm_ray.records.evaluation import EvaluationResult, is_evaluation
from slm_ray.records.pipeline import PipelineState
from slm_ray.records.proxies import ProxyReport
from slm_ray.records.run import RunRecord
from slm_ray.records.training import TrainEvaluation, TrainInputs
from slm_ray.report.charts import Looks, Picture, Row, draw_png, lines
from slm_ray.report.content import Block, Chapter, Code, Figure, Report, Section, Table, Text
from slm_ray.report.costs import (
    Cost,
    cost_section,
    earlier_costs,
    evaluation_costs,
    proxies_costs,
    search_costs,
    summed_training_costs,
)
from slm_ray.report.evaluation import EvaluationRun, load_evaluation, short_names, text_of
from slm_ray.report.evaluation_report import evaluation_chapter, evaluation_png, write_evaluation
from slm_ray.report.evaluation_tasks import task_models, task_rows
from slm_ray.report.matching import match
from slm_ray.report.pipeline import load_pipeline, pipeline_chapter, write_pipeline_report
from slm_ray.report.placing import Axis, perplexity_axis
from slm_ray.report.proxies import (
    correlations_table,
    load_proxies,
    proxies_chapter,
    proxies_png,
    write_proxies_report,
)
from slm_ray.report.render import write_report
from slm_ray.report.search import SearchRun, load_search
from slm_ray.report.search_charts import front_axes, tip_of
from slm_ray.report.search_report import front_png, search_chapter, write_search_report
from slm_ray.report.text import MISSING, count_text, fixed, perplexity_text, times_text
from slm_ray.report.training import TrainingRun, load_training, models_table
from slm_ray.report.training_report import (
    TRAINING_PICTURE,
    curves_section,
    training_chapter,
    training_png,
    write_training_report,
)

_FRONTS_PICTURE = "fronts.png"
_OPEN_RUNS, _MARKED_CURVES, _CANDIDATES_IN_ALL = 3, 8, 6000
_FRONTS_LEAD = (
    "The front of every search; the lower and the further left, the better. Hover or tap for figures; select a name to "
    "bring it out."
)


@dataclass(frozen=True)
class Kind:
    """What can be done with a kind of run."""

    name: str  # Of one run
    plural: str  # Of several
    load: Callable[[Path], Any]  # Reads a folder
    write: Callable[[Any], list[Path]]  # Writes its own report into its own folder
    # Its part of a page, from its records, a prefix, a picture's file and the most candidates to draw
    chapter: Callable[[Any, str, str, int], Chapter]
    costs: Callable[[Any], list[Cost]]  # What it cost
    # Its own picture on a page of several runs; None for kinds that only have one together
    png: Callable[[Any], bytes] | None = None


KINDS = {
    "search": Kind("search", "searches", load_search, write_search_report, search_chapter, search_costs, front_png),
    "pretrain": Kind("pretraining", "pretraining runs", load_training, write_training_report,
                     lambda run, prefix, file, most: training_chapter(run, prefix, ""), summed_training_costs),
    "pipeline": Kind("pipeline", "pipelines", load_pipeline, write_pipeline_report,
                     lambda run, prefix, file, most: pipeline_chapter(run, prefix), lambda run: run.costs),
    "evaluate": Kind("evaluation", "evaluations", load_evaluation, lambda run: write_evaluation(run, run.folder),
                     lambda run, prefix, file, most: evaluation_chapter(run, prefix, file), evaluation_costs,
                     evaluation_png),
    "proxies": Kind("report on proxies", "reports on proxies", load_proxies, write_proxies_report,
                    lambda run, prefix, file, most: proxies_chapter(run, prefix, file), proxies_costs, proxies_png),
}  # fmt: skip


def kind_of(folder: Path) -> str:
    """Which kind of run a folder holds: a key of ``KINDS``."""
    if not folder.is_dir():
        raise UserError(f"{folder} is {'a file' if folder.exists() else 'missing'}: give the folder of a run")
    if (folder / PipelineState.FILE).is_file():
        return "pipeline"
    if is_evaluation(folder):
        return "evaluate"
    if not (folder / RunRecord.FILE).is_file():
        raise UserError(f"{folder} holds no run ({RunRecord.FILE} is missing): give the folder that a command wrote")
    try:
        run = find_record(folder, RunRecord)
    except UserError:
        run = None
    if run is not None:
        if run.stage not in KINDS:
            known = ", ".join(kind.plural for kind in KINDS.values())
            raise UserError(f"{folder} is a run of slm-ray {run.stage}, which has no report: give one of {known}")
        return run.stage
    # A damaged config says nothing of its kind; the files beside it do.
    if (folder / ProxyReport.FILE).is_file():
        return "proxies"
    return "pretrain" if list(folder.glob(f"*/{TrainEvaluation.FILE}")) else "search"


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    folder: Path  # As the user gave it
    kind: str  # A key of ``KINDS``
    records: Any  # What it says, of the type of its kind
    name: str = ""  # What it is called among several

    @property
    def notes(self) -> Sequence[str]:
        """What is missing or damaged."""
        return tuple(self.records.notes)

    def write(self) -> list[Path]:
        """Write its own report, in its own folder."""
        return KINDS[self.kind].write(self.records)


def load_run(folder: Path) -> Run:
    """Read a folder as what it is."""
    kind = kind_of(folder)
    return Run(folder, kind, KINDS[kind].load(folder))


def named(runs: Sequence[Run]) -> list[Run]:
    """Runs with names: their folders by as few parts as tell them apart."""
    short = short_names([str(run.folder.absolute()) for run in runs])
    return [replace(run, name=short[str(run.folder.absolute())]) for run in runs]


def _inside(runs: Sequence[Run], kind: str, part: str) -> list[tuple[str, Any]]:
    """The runs of a kind, and those that pipelines hold, by name."""
    found = [(run.name, run.records) for run in runs if run.kind == kind]
    held = [(run.name, getattr(run.records, part)) for run in runs if run.kind == "pipeline"]
    return found + [(name, records) for name, records in held if records is not None]


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
    digests = set()
    for _, run in runs:
        try:
            inputs = find_record(run.folder, TrainInputs)
        except UserError:
            continue
        digests |= {inputs.held_out_tokens} if inputs else set()
    if len(digests) < 2:
        return ""
    return (
        f"These runs were measured on {len(digests)} different sets of held-out tokens: compare perplexities only "
        "inside a run, or of runs with the same text."
    )


def best_matching_table(run: TrainingRun) -> Table:
    """What the best model of all needed to get as far as each of the others."""
    curves = run.curves
    best = next((curve for curve in curves if run.best and curve.name == run.best.name), None)
    header = ("to reach the last loss of", "loss", "tokens", "tokens, against its own", "FLOPs, against its own")
    rows = []
    for other in curves:
        if best is None or other is best:
            continue
        found = match(best, other)
        tokens = "not reached" if found.tokens is None else format_count(found.tokens)
        ratios = (times_text(found.ratio_tokens) or MISSING, times_text(found.ratio_flops) or MISSING)
        rows.append((other.name, f"{other.final_loss:.4f}", tokens, *ratios))
    return Table(f"What {best.name if best else 'the best'} needed", header, tuple(rows)).compact()


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
        count = len(run.notes)
        state = f"{count} {'note' if count == 1 else 'notes'}" if count else "complete"
        rows.append((run.name, KINDS[run.kind].name, chapter.headline, state))
    return Section("Overview", [Table("Overview", ("run", "kind", "result", "records"), tuple(rows))])


def _shared_training(trainings: Sequence[tuple[str, TrainingRun]]) -> list[Section]:
    if len(trainings) < 2:
        return []
    merged = merge_training(trainings)
    marked = len(merged.measured) <= _MARKED_CURVES
    curves = curves_section(merged, "all-training", TRAINING_PICTURE, marked=marked)
    said: list[Block] = [Text(held_out_note(trainings))]
    if not marked:
        said.append(Text("Where one model matched another is marked in the pictures of the single runs.", small=True))
    matching, models = best_matching_table(merged), models_table(merged)
    return [
        replace(curves, title="Training curves of all runs", blocks=[*said, *curves.blocks]),
        Section("The trained models", [models]),
        Section(matching.title, [matching],
                "A loss counts as reached at the first evaluation that shows it. FLOPs count everything."),
    ]  # fmt: skip


def set_report(runs: Sequence[Run], command: str) -> Report:
    """The report of several runs."""
    runs = named(runs)
    searches, trainings = _inside(runs, "search", "search"), _inside(runs, "pretrain", "training")
    evaluations = _inside(runs, "evaluate", "evaluation")
    most, folded = _CANDIDATES_IN_ALL // max(len(searches), 1), len(runs) > _OPEN_RUNS
    pictures: dict[str, bytes] = {}
    chapters = []
    for place, run in enumerate(runs):
        kind, file = KINDS[run.kind], ""
        if kind.png is not None:
            file = f"{kind.name.split()[-1]}-{place}.png"
            pictures[file] = kind.png(run.records)
        chapter = kind.chapter(run.records, f"run{place}-", file, most)
        title = f"{kind.name.capitalize()} {run.name}"
        chapters.append(replace(chapter, title=title, anchor=f"run{place}", folded=folded))
    fronts = fronts_picture(searches)
    if fronts:
        pictures[_FRONTS_PICTURE] = draw_png([fronts], "The fronts of all searches")
    if len(trainings) > 1:
        merged = merge_training(trainings)
        pictures[TRAINING_PICTURE] = training_png(merged, marked=len(merged.measured) <= _MARKED_CURVES)
    shared: list[Block] = [Figure("fronts", fronts, _FRONTS_PICTURE, "The fronts")] if fronts else []
    shared += [fronts_table(searches)] if len(searches) > 1 else []
    compared = evaluations_table(evaluations) if len(evaluations) > 1 else Table("The evaluations", (), ())
    proxies = [(run.name, correlations_table(run.records)) for run in runs if run.kind == "proxies"]
    costs = [replace(cost, run=run.name) for run in runs for cost in KINDS[run.kind].costs(run.records)]
    together = Chapter(
        [
            _overview(runs, chapters),
            Section("The fronts of all searches", shared, _FRONTS_LEAD if fronts else ""),
            *_shared_training(trainings),
            Section(compared.title, [compared], "Bits per byte can be compared whatever the tokenizers are."),
            Section("Proxies against trained quality",
                    [replace(table, title=name, titled=True) for name, table in proxies] if len(proxies) > 1 else []),
            cost_section([*costs, *earlier_costs(trainings, costs)]),
            Section("How to reproduce", [Code(command, "sh")], "This report; a run's own command is with the run."),
        ],
        title="All runs",
        anchor="all",
        notes=[f"{run.name}: {note}" for run in runs for note in run.notes],
    )  # fmt: skip
    counts = [(kind, sum(run.kind == name for run in runs)) for name, kind in KINDS.items()]
    counted = ", ".join(f"{count} {kind.plural if count > 1 else kind.name}" for kind, count in counts if count)
    title = f"{len(runs)} runs: {counted}" if len(runs) > 1 else chapters[0].title
    return Report(title, "report of runs", [together, *chapters], pictures)


def write_set_report(runs: Sequence[Run], folder: Path, argv: Sequence[str]) -> list[Path]:
    """Write one report of several runs: pictures, ``report.md`` and ``report.html`` in a folder of its own."""
    if any((folder / name).exists() for name in (RunRecord.FILE, PipelineState.FILE, EvaluationResult.FILE)):
        raise UserError(f"--out {folder} holds a run, whose own report would be lost: choose another folder")
    return write_report(set_report(runs, shlex.join(["slm-ray", "report", *argv])), folder)
