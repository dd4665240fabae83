"""``slm-ray report RUN…``: the pages, pictures and tables of finished and unfinished runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from slm_ray.config.parser import Parser


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        prog="python -m slm_ray.report",
        description="Make pictures, tables, report.md and report.html of searches, pretraining, evaluations, reports "
        "on proxies and pipelines, from their records alone: of each run in its own folder, or with --out of all of "
        "them on one page.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=None, help="one page of all runs, in this folder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str]) -> int:
    """Rebuild the reports of the runs named, or make one of all of them."""
    given = make_parser().parse_args(list(argv))
    from slm_ray.report.kinds import load_run  # loads Altair, which takes half a second
    from slm_ray.report.runset import write_run, write_set_report

    runs = [load_run(folder) for folder in given.runs]
    for run in runs:
        for note in run.records.notes:
            print(f"note: {note}", file=sys.stderr)
    if given.out is not None:
        paths = write_set_report(runs, given.out, argv)
    else:
        paths = [path for run in runs for path in write_run(run)]
    for path in paths:
        print(path)
    return 0
