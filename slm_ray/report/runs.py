"""Which kind of run a folder holds, and its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.report.build import write_report, write_training_report
from slm_ray.report.evaluation import write_evaluation
from slm_ray.report.evaluation_records import is_evaluation, load_evaluation
from slm_ray.report.pipeline import STATE_FILE, load_pipeline, write_pipeline_report
from slm_ray.report.proxies import is_proxies_run, load_proxies, write_proxy_report
from slm_ray.report.records import load_run, read_part
from slm_ray.report.training import is_training_run, load_training
from slm_ray.runtime.runfolder import CONFIG_FILE

SEARCH, TRAINING, PIPELINE, EVALUATION, PROXIES = "search", "pretraining", "pipeline", "evaluation", "proxies"
_LOAD: dict[str, Callable[[Path], Any]] = {
    SEARCH: load_run, TRAINING: load_training, PIPELINE: load_pipeline, EVALUATION: load_evaluation,
    PROXIES: load_proxies,
}  # fmt: skip
_WRITE: dict[str, Callable[[Any], list[Path]]] = {
    SEARCH: write_report, TRAINING: write_training_report, PIPELINE: write_pipeline_report,
    EVALUATION: lambda records: write_evaluation(records, records.folder), PROXIES: write_proxy_report,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        folder: As the user gave it.
        kind: ``search``, ``pretraining``, ``pipeline``, ``evaluation`` or ``proxies``.
        records: Its records, of the type of its kind.
    """

    folder: Path
    kind: str
    records: Any

    @property
    def notes(self) -> Sequence[str]:
        """What is missing or damaged."""
        return tuple(self.records.notes)

    def write(self) -> list[Path]:
        """Make its own report, in its own folder."""
        return _WRITE[self.kind](self.records)


def kind_of(folder: Path) -> str:
    """Which kind of run a folder holds.

    Raises:
        UserError: None, as far as can be seen.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is {'a file' if folder.exists() else 'missing'}: give the folder of a run")
    if (folder / STATE_FILE).is_file():
        return PIPELINE
    if is_evaluation(folder):
        return EVALUATION
    config = read_part(folder / CONFIG_FILE, []) or {}
    if is_proxies_run(folder, config):
        return PROXIES
    if is_training_run(config):
        return TRAINING
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no run ({CONFIG_FILE} is missing): give the folder that a command wrote")
    # A damaged config says nothing of its kind; the files beside it do.
    return TRAINING if list(folder.glob("*/evals.jsonl")) else SEARCH


def load_any(folder: Path) -> Run:
    """Read a folder as what it is.

    Raises:
        UserError: It holds no run.
    """
    kind = kind_of(folder)
    return Run(folder, kind, _LOAD[kind](folder))
