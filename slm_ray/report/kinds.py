"""Which kind of run a folder holds, and how each kind is read and reported; a pipeline is the runs of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.records.base import find_record, read_record
from slm_ray.records.evaluation import is_evaluation
from slm_ray.records.pipeline import PipelineState
from slm_ray.records.proxies import ProxyReport
from slm_ray.records.run import RunRecord
from slm_ray.records.training import TrainEvaluation, TrainInputs
from slm_ray.report.content import Report
from slm_ray.report.costs import Cost, capture_costs
from slm_ray.report.evaluation import EvaluationRun, load_evaluation
from slm_ray.report.evaluation_report import evaluation_report
from slm_ray.report.proxies import load_proxies, proxies_report
from slm_ray.report.reading import RunReader, RunRecords
from slm_ray.report.search import load_search
from slm_ray.report.search_report import search_report
from slm_ray.report.training import load_training
from slm_ray.report.training_report import training_report

PIPELINE = "pipeline"
STAGES = ("pretrain", "evaluate", "search")


@dataclass(frozen=True)
class Kind:
    """What a kind of run is called, how its folder is read, and how its report is made."""

    name: str
    plural: str
    load: Callable[[Path], Any]
    report: Callable[[Any], Report]


KINDS = {
    "search": Kind("search", "searches", load_search, search_report),
    "pretrain": Kind("pretraining", "pretraining runs", load_training, training_report),
    "evaluate": Kind("evaluation", "evaluations", load_evaluation, evaluation_report),
    "proxies": Kind("report on proxies", "reports on proxies", load_proxies, proxies_report),
}


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    folder: Path  # as the user gave it
    kind: str  # a key of ``KINDS``, or ``pipeline``
    records: Any  # of the type of its kind
    name: str = ""  # what it is called among several

    def report(self) -> Report:
        """The run's own report; a pipeline's is made in ``runset``."""
        return KINDS[self.kind].report(self.records)


@dataclass(frozen=True)
class PipelineRun(RunRecords):
    """What a pipeline's folder says."""

    state: PipelineState
    runs: tuple[Run, ...]  # its stages that have begun: pretraining, evaluation, search
    capture: tuple[Cost, ...]  # what its logit store cost


def kind_of(folder: Path) -> str:
    """Which kind of run a folder holds: ``pipeline`` or a key of ``KINDS``."""
    if (folder / PipelineState.FILE).is_file():
        return PIPELINE
    if is_evaluation(folder):
        return "evaluate"
    reader = RunReader(folder)
    if reader.run is not None:
        if reader.run.stage not in KINDS:
            known = ", ".join([*(kind.plural for kind in KINDS.values()), "pipelines"])
            stage = reader.run.stage
            raise UserError(f"{folder} is a run of slm-ray {stage}, which has no report: give one of {known}")
        return reader.run.stage
    # A damaged config says nothing of its kind; the files beside it do.
    if (folder / ProxyReport.FILE).is_file():
        return "proxies"
    return "pretrain" if list(folder.glob(f"*/{TrainEvaluation.FILE}")) else "search"


def load_run(folder: Path) -> Run:
    """Read a folder as what it is."""
    kind = kind_of(folder)
    return Run(folder, kind, load_pipeline(folder) if kind == PIPELINE else KINDS[kind].load(folder))


def _teacher_level(run: EvaluationRun, teacher: str, folder: Path) -> tuple[str, float] | None:
    """The teacher's loss, where it was evaluated on the tokens that training curves are measured on."""
    try:
        inputs = find_record(folder, TrainInputs)
    except UserError:
        return None
    for model in run.models:
        for text in model.text if teacher in (model.name, run.called(model.name)) else ():
            if inputs and text.tokens_digest == inputs.held_out_tokens:
                return f"teacher {teacher}", text.loss
    return None


def load_pipeline(folder: Path) -> PipelineRun:
    """Read a pipeline's folder as far as it goes."""
    notes: list[str] = []
    state, capture, level = PipelineState(), [], None
    stages: dict[str, RunRecords] = {}
    try:
        state = read_record(folder, PipelineState)
    except UserError as error:
        notes.append(str(error))
    try:
        capture = capture_costs(folder / "logits")
    except UserError as error:
        notes.append(str(error))
    if (folder / "search" / RunRecord.FILE).is_file():
        stages["search"] = load_search(folder / "search")
    if is_evaluation(folder / "evaluate"):
        evaluation = stages["evaluate"] = load_evaluation(folder / "evaluate")
        level = _teacher_level(evaluation, state.teacher, folder / "pretrain")
    if (folder / "pretrain" / RunRecord.FILE).is_file():
        stages["pretrain"] = load_training(folder / "pretrain", level)
    else:
        notes.append("This pipeline has not come to its pretraining yet: give its command again to continue")
    runs = tuple(Run(folder / name, name, stages[name]) for name in STAGES if name in stages)
    notes += [f"{run.kind}: {note}" for run in runs for note in run.records.notes]
    return PipelineRun(folder, tuple(notes), {}, {}, state.command or None, state, runs, tuple(capture))
