"""The report of a pipeline: its training, evaluation and search on one page, and what all of it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_seconds
from slm_ray.records.evaluation import is_evaluation
from slm_ray.records.pipeline import PipelineState, read_pipeline
from slm_ray.records.run import RunRecord
from slm_ray.records.training import TrainInputs
from slm_ray.report.content import Chapter, Links, Report, Section, Table
from slm_ray.report.costs import Cost, capture_costs, cost_section, evaluation_costs, search_costs, training_costs
from slm_ray.report.evaluation import EVALUATION_PICTURE, EvaluationRun, load_evaluation
from slm_ray.report.evaluation_report import evaluation_png, evaluation_sections
from slm_ray.report.facts import environment_section, reproduce_section
from slm_ray.report.reading import RunReader
from slm_ray.report.render import write_report
from slm_ray.report.search import FRONT_PICTURE, SearchRun, load_search
from slm_ray.report.search_report import front_png, front_sections, headline, progress_section
from slm_ray.report.training import TrainingRun, load_training
from slm_ray.report.training_report import (
    TRAINING_PICTURE,
    settings_text,
    training_headline,
    training_png,
    training_sections,
    training_steps,
    training_tiles,
)

_STAGES = ("search", "logits", "pretrain", "evaluate")
_REPORTS = {"The search": "search/report.html", "The pretraining": "pretrain/report.html",
            "The evaluation": "evaluate/report.html"}  # fmt: skip


@dataclass(frozen=True)
class PipelineRun:
    """What a pipeline's folder says."""

    folder: Path  # The pipeline's folder
    notes: tuple[str, ...]  # What is missing or damaged, in any of its stages
    state: PipelineState  # Its stages
    training: TrainingRun  # Its pretraining; an empty one where it has not begun
    evaluation: EvaluationRun | None  # Its evaluation, where there is one
    search: SearchRun | None  # Its search, where it can be read
    capture: tuple[Cost, ...]  # What its logit store cost

    @property
    def title(self) -> str:
        """What it was."""
        return f"Pipeline of {self.state.teacher or 'its teacher'}"

    @property
    def costs(self) -> list[Cost]:
        """What every stage cost."""
        rows = search_costs(self.search) if self.search else []
        rows += [*self.capture, *training_costs(self.training)]
        return rows + (evaluation_costs(self.evaluation) if self.evaluation else [])


def _teacher_level(run: EvaluationRun | None, teacher: str, tokens: str | None) -> tuple[str, float] | None:
    """The teacher's loss, where it was evaluated on the tokens that training curves are measured on."""
    for model in run.models if run and tokens else ():
        for text in model.text if run and teacher in (model.name, run.called(model.name)) else ():
            if text.tokens_digest == tokens:
                return f"teacher {teacher}", text.loss
    return None


def load_pipeline(folder: Path) -> PipelineRun:
    """Read a pipeline's folder as far as it goes."""
    notes: list[str] = []
    state, search, evaluation = PipelineState(), None, None
    capture: list[Cost] = []
    try:
        state = read_pipeline(folder)
    except UserError as error:
        notes.append(str(error))
    if (folder / "search" / RunRecord.FILE).is_file():
        search = load_search(folder / "search")
        notes += search.notes
    if is_evaluation(folder / "evaluate"):
        evaluation = load_evaluation(folder / "evaluate")
        notes += evaluation.notes
    try:
        capture = capture_costs(folder / "logits")
    except UserError as error:
        notes.append(str(error))
    if (folder / "pretrain" / RunRecord.FILE).is_file() or not (search or evaluation):
        inputs = RunReader(folder / "pretrain").record(TrainInputs)
        level = _teacher_level(evaluation, state.teacher, inputs.held_out_tokens if inputs else None)
        training = load_training(folder / "pretrain", level)
    else:
        note = "This pipeline has not come to its pretraining yet: give its command again to continue"
        training = TrainingRun(folder / "pretrain", (note,), {}, {}, None, ())
    notes[:0] = training.notes
    return PipelineRun(folder, tuple(notes), state, training, evaluation, search, tuple(capture))


def stages_table(state: PipelineState) -> Table:
    """What a pipeline's stages took and how each can be run by itself."""
    known = [(name, state.stages[name]) for name in _STAGES if name in state.stages]
    rows = tuple((name, format_seconds(stage.seconds), stage.command) for name, stage in known)
    return Table("The stages", ("stage", "time", "command"), rows)


def pipeline_chapter(run: PipelineRun, prefix: str = "", pictures: Sequence[str] = ("", "", "")) -> Chapter:
    """A pipeline's part of a page."""
    curves, models, *tables, spent = training_sections(run.training, prefix, pictures[0])
    evaluated = evaluation_sections(run.evaluation, prefix, pictures[1]) if run.evaluation else []
    evaluated[:1] = [replace(part, title="The evaluated models") for part in evaluated[:1]]
    searched = front_sections(run.search, f"{prefix}front", pictures[2]) if run.search else []
    links = {text: address for text, address in _REPORTS.items() if (run.folder / address).is_file() and not prefix}
    stages = stages_table(run.state)
    sections = [
        curves, *evaluated, *searched, *([progress_section(run.search, f"{prefix}progress")] if run.search else []),
        replace(models, title="The trained models"), *tables, cost_section(run.costs),
        replace(spent, title="What each model's training cost"), Section(stages.title, [stages]),
        Section("The stages' own reports", [Links(links)]),
        reproduce_section(run.state.command or run.training.command,
                          training_steps(run.training) if run.training.models else []),
        environment_section(run.training.environment, run.training.options),
    ]  # fmt: skip
    found = training_headline(run.training) if run.training.models or not run.search else headline(run.search)
    return Chapter(
        sections, facts=settings_text(run.training), headline=found, notes=run.notes, tiles=training_tiles(run.training)
    )  # fmt: skip


def write_pipeline_report(run: PipelineRun) -> list[Path]:
    """Write the pictures, ``report.md`` and ``report.html`` into the pipeline's folder."""
    pictures = {TRAINING_PICTURE: training_png(run.training)}
    pictures |= {EVALUATION_PICTURE: evaluation_png(run.evaluation)} if run.evaluation else {}
    pictures |= {FRONT_PICTURE: front_png(run.search)} if run.search else {}
    files = [name if name in pictures else "" for name in (TRAINING_PICTURE, EVALUATION_PICTURE, FRONT_PICTURE)]
    return write_report(Report(run.title, "pipeline report", [pipeline_chapter(run, "", files)], pictures), run.folder)
