"""Builds everything that is made from a run's records."""

from __future__ import annotations

from pathlib import Path

from slm_ray.records.files import write_bytes, write_text
from slm_ray.report.model import RunRecords
from slm_ray.report.plots import write_front_png
from slm_ray.report.records import load_run
from slm_ray.report.search_page import report_markdown, report_page
from slm_ray.report.table_file import write_front_csv
from slm_ray.report.training import TrainingRecords, load_training
from slm_ray.report.training_page import training_markdown, training_page
from slm_ray.report.training_plot import draw_training


def build_report(folder: Path) -> list[Path]:
    """Make ``front.csv``, ``front.png``, ``report.md`` and ``report.html`` in a run folder, from its records alone.

    Args:
        folder: The run folder, of a finished run or of one that is not.

    Returns:
        The files written.

    Raises:
        UserError: The folder holds no run, or cannot be written.
    """
    return write_report(load_run(folder))


def write_report(run: RunRecords) -> list[Path]:
    """Do the same for records already read."""
    paths = [run.folder / name for name in ("front.csv", "front.png", "report.md", "report.html")]
    write_front_csv(run, paths[0])
    write_front_png(run, paths[1])
    write_text(paths[2], report_markdown(run))
    write_text(paths[3], report_page(run))
    return paths


def build_training_report(folder: Path) -> list[Path]:
    """Make ``training.png``, ``report.md`` and ``report.html`` in a pretraining run's folder, from its records alone.

    Args:
        folder: The run folder, of a finished run or of one that is not.

    Returns:
        The files written.

    Raises:
        UserError: The folder holds no run, or cannot be written.
    """
    return write_training_report(load_training(folder))


def write_training_report(run: TrainingRecords) -> list[Path]:
    """Do the same for records already read."""
    paths = [run.folder / name for name in ("training.png", "report.md", "report.html")]
    write_bytes(paths[0], draw_training(run))
    write_text(paths[1], training_markdown(run))
    write_text(paths[2], training_page(run))
    return paths
