"""The report of a pipeline: its training, evaluation and search on one page, and what all of it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_seconds
from slm_ray.records.files import write_bytes, write_text
from slm_ray.report.blocks import Chapter, Links, Report, Rows, Section
from slm_ray.report.costs import Cost, capture_costs, cost_section, evaluation_costs, search_costs, training_costs
from slm_ray.report.evaluation_page import EVALUATION_PICTURE, evaluation_sections
from slm_ray.report.evaluation_plot import draw_evaluation
from slm_ray.report.evaluation_records import EvaluationRecords, is_evaluation, load_evaluation
from slm_ray.report.facts import environment_section, reproduce_section
from slm_ray.report.fidelity import fidelity_section
from slm_ray.report.model import RunRecords
from slm_ray.report.page import markdown_of, page_of
from slm_ray.report.plots import draw_front
from slm_ray.report.records import load_run, mapping, read_part
from slm_ray.report.search_page import FRONT_PICTURE, headline, picture_sections, progress_section
from slm_ray.report.tables import Table
from slm_ray.report.training import Level, TrainingRecords, load_training
from slm_ray.report.training_page import (
    TRAINING_PICTURE,
    next_steps,
    training_headline,
    training_sections,
    training_tiles,
)
from slm_ray.report.training_plot import draw_training
from slm_ray.report.training_tables import settings_text
from slm_ray.runtime.runfolder import CONFIG_FILE

STATE_FILE = "pipeline.json"
_STAGES = ("search", "logits", "pretrain", "evaluate")
_REPORTS = {
    "The search": "search/report.html", "The pretraining": "pretrain/report.html",
    "The evaluation": "evaluate/report.html",
}  # fmt: skip


@dataclass(frozen=True)
class PipelineRecords:
    """Everything that a pipeline's folder says.

    Attributes:
        folder: What the pipeline was given as ``--out``.
        notes: What is missing or damaged, in any of its stages.
        state: ``pipeline.json``.
        training: Its pretraining.
        evaluation: Its evaluation, where there is one.
        search: Its search, where it can be read.
        capture: The manifest of its logit store; empty where there is none.
    """

    folder: Path
    notes: tuple[str, ...]
    state: Mapping[str, Any]
    training: TrainingRecords
    evaluation: EvaluationRecords | None
    search: RunRecords | None
    capture: Mapping[str, Any]

    @property
    def command(self) -> str | None:
        """The pipeline's command."""
        command = self.state.get("command")
        return str(command) if command else self.training.command


def _teacher_level(evaluation: EvaluationRecords | None, teacher: object, inputs: Mapping[str, Any]) -> Level | None:
    """The teacher's loss, where it was evaluated on the tokens that training curves are measured on."""
    tokens = inputs.get("held_out_tokens")
    for model in evaluation.models if evaluation and tokens else ():
        for score in model.texts if teacher in (model.name, model.short) else ():
            if score.tokens_digest == tokens and score.loss is not None:
                return Level(f"teacher {teacher}", score.loss.value)
    return None


def load_pipeline(folder: Path) -> PipelineRecords:
    """Read a pipeline's folder as far as it goes.

    Args:
        folder: What the pipeline was given as ``--out``.

    Raises:
        UserError: None of its stages has begun.
    """
    notes: list[str] = []
    state = read_part(folder / STATE_FILE, notes) or {}
    search: RunRecords | None = None
    evaluation: EvaluationRecords | None = None
    if (folder / "search" / CONFIG_FILE).is_file():
        try:
            search = load_run(folder / "search")
        except UserError as error:
            notes.append(f"the search is not shown: {error}")
    if is_evaluation(folder / "evaluate"):
        evaluation = load_evaluation(folder / "evaluate")
    inputs = read_part(folder / "pretrain" / "inputs.json", notes) or {}
    training = _training(folder, _teacher_level(evaluation, state.get("teacher"), inputs), search, evaluation)
    capture = read_part(folder / "logits" / "manifest.json", notes) or {}
    inner = [*(search.notes if search else ()), *(evaluation.notes if evaluation else ())]
    return PipelineRecords(
        folder, (*training.notes, *inner, *notes), state, replace(training, notes=()), evaluation, search, capture
    )


def _training(
    folder: Path, level: Level | None, search: RunRecords | None, evaluation: EvaluationRecords | None
) -> TrainingRecords:
    """The pretraining; an empty one where it has not begun and another stage has."""
    if not (folder / "pretrain" / CONFIG_FILE).is_file() and (search or evaluation):
        note = "This pipeline has not come to its pretraining yet: give its command again to go on"
        return TrainingRecords(folder / "pretrain", False, (note,), {}, {}, None, (), None)
    return load_training(folder / "pretrain", level)


def stages_table(stages: Mapping[str, Any], order: Sequence[str] = _STAGES) -> Table:
    """What a pipeline's stages took and how each can be run by itself."""
    rows = tuple(
        (name, format_seconds(float(stages[name].get("seconds") or 0)), str(stages[name].get("command")))
        for name in order
        if isinstance(stages.get(name), Mapping)
    )
    return Table("The stages", ("stage", "time", "command"), rows)


def pipeline_costs(run: PipelineRecords) -> list[Cost]:
    """What every stage cost."""
    rows = search_costs(run.search) if run.search else []
    rows += capture_costs(run.capture)
    rows += training_costs(run.training)
    return rows + (evaluation_costs(run.evaluation) if run.evaluation else [])


def pipeline_sections(run: PipelineRecords, prefix: str = "", pictures: Sequence[str] = ("", "", "")) -> list[Section]:
    """Everything that a pipeline's report shows, but for its command and environment.

    Args:
        run: Its records.
        prefix: Of the names of its pictures on the page.
        pictures: The files of curves, evaluation and front, shown in Markdown.
    """
    curves, *tables, spent = training_sections(run.training, prefix, pictures[0])
    stages = stages_table(mapping(run.state.get("stages")))
    links = {text: address for text, address in _REPORTS.items() if (run.folder / address).is_file()}
    shape = picture_sections(run.search, f"{prefix}front", pictures[2]) if run.search else []
    evaluated = evaluation_sections(run.evaluation, prefix, pictures[1]) if run.evaluation else []
    return [
        curves,
        *(replace(part, title="The evaluated models") if part.title == "The models" else part for part in evaluated),
        *shape,
        *([progress_section(run.search, f"{prefix}progress")] if run.search else []),
        *([fidelity_section(run.search, f"{prefix}fidelity")] if run.search else []),
        *(replace(table, title="The trained models") if table.title == "The models" else table for table in tables),
        cost_section(pipeline_costs(run)),
        replace(spent, title="What each model's training cost"),
        Section(stages.title, [Rows(stages)]),
        Section("The stages' own reports", [Links(links)] if links and not prefix else []),
    ]


def pipeline_title(run: PipelineRecords) -> str:
    """What a pipeline was."""
    return f"Pipeline of {run.state.get('teacher') or 'its teacher'}"


def pipeline_chapter(run: PipelineRecords, prefix: str = "", pictures: Sequence[str] = ("", "", "")) -> Chapter:
    """A pipeline's part of a page; see :func:`pipeline_sections`."""
    sections = [
        *pipeline_sections(run, prefix, pictures),
        reproduce_section(run.command, next_steps(run.training) if run.training.models else ()),
        environment_section(run.training.environment, run.training.config),
    ]
    found = training_headline(run.training) if run.training.models or not run.search else headline(run.search)
    return Chapter(
        sections, facts=settings_text(run.training), headline=found, notes=run.notes, tiles=training_tiles(run.training)
    )


def pipeline_report(run: PipelineRecords) -> Report:
    """The whole report of a pipeline."""
    pictures = (
        TRAINING_PICTURE, EVALUATION_PICTURE if run.evaluation else "", FRONT_PICTURE if run.search else "",
    )  # fmt: skip
    chapter = pipeline_chapter(run, pictures=pictures)
    return Report(pipeline_title(run), "pipeline report", [chapter], TRAINING_PICTURE)


def write_pipeline_report(run: PipelineRecords) -> list[Path]:
    """Make the pictures, ``report.md`` and ``report.html`` in the pipeline's folder.

    Raises:
        UserError: They cannot be written.
    """
    folder = run.folder
    drawn = {TRAINING_PICTURE: draw_training(run.training)}
    if run.evaluation:
        drawn[EVALUATION_PICTURE] = draw_evaluation(run.evaluation)
    if run.search:
        drawn[FRONT_PICTURE] = draw_front(run.search)
    for name, data in drawn.items():
        write_bytes(folder / name, data)
    report = pipeline_report(run)
    write_text(folder / "report.md", markdown_of(report))
    write_text(folder / "report.html", page_of(report))
    return [folder / name for name in (*drawn, "report.md", "report.html")]
