"""``python -m slm_ray.report RUN…``: the table, picture and pages of finished and unfinished runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from slm_ray.core.config import Parser
from slm_ray.core.runfolder import CONFIG_FILE
from slm_ray.report.build import write_report, write_training_report
from slm_ray.report.pipeline import STATE_FILE, load_pipeline, write_pipeline_report
from slm_ray.report.records import load_run, read_part
from slm_ray.report.training import is_training_run, load_training


def main(argv: Sequence[str]) -> int:
    """Rebuild the reports of the runs named.

    Args:
        argv: The run folders.

    Returns:
        0 when every report is written.

    Raises:
        UserError: A folder holds no run; nothing is written then.
    """
    parser = Parser(
        prog="python -m slm_ray.report",
        description="Make picture, table, report.md and report.html of searches, pretraining and pipelines from their "
        "records alone.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for notes, write in [_load(folder) for folder in parser.parse_args(list(argv)).runs]:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        for path in write():
            print(path)
    return 0


def _load(folder: Path) -> tuple[Sequence[str], Callable[[], list[Path]]]:
    """Read a folder as what it is; gives what is missing in it, and what writes its report."""
    if (folder / STATE_FILE).is_file():
        training, around = load_pipeline(folder)
        return training.notes, lambda: write_pipeline_report(folder, training, around)
    if is_training_run(read_part(folder / CONFIG_FILE, []) or {}):
        records = load_training(folder)
        return records.notes, lambda: write_training_report(records)
    run = load_run(folder)
    return run.notes, lambda: write_report(run)
