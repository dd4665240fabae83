"""``python -m slm_ray.report RUN…``: the table, picture and pages of finished and unfinished runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from slm_ray.core.config import Parser
from slm_ray.report.build import write_report
from slm_ray.report.records import load_run


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
        description="Make front.csv, front.png, report.md and report.html of each run from its records alone.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    runs = [load_run(folder) for folder in parser.parse_args(list(argv)).runs]
    for run in runs:
        for note in run.notes:
            print(f"note: {note}", file=sys.stderr)
        for path in write_report(run):
            print(path)
    return 0
