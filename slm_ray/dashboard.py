"""``python -m slm_ray.dashboard``: a W&B dashboard of searches, trainings, evaluations and sweeps, made by code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.parser import Parser
from slm_ray.records.files import write_json
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.wandb_tracker import has_key, wandb_project


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        prog="python -m slm_ray.dashboard",
        description="Make a W&B workspace or report of runs tracked with --tracker wandb; or read back what W&B keeps "
        "of them on this disk.",
    )
    parser.add_argument("--entity", default=None, help="W&B user or team [default: whom the key belongs to]")
    parser.add_argument("--project", default=wandb_project(), help="W&B project")
    parser.add_argument("--report", action="store_true", help="a report instead of a workspace")
    spec = "write what would be sent as JSON, checked, and send nothing: needs no key and no network"
    parser.add_argument("--spec", type=Path, default=None, metavar="FILE", help=spec)
    read = "print what W&B keeps of a run on this disk, and the command that sends it"
    parser.add_argument("--read", type=Path, default=None, metavar="RUN", help=read)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str]) -> int:
    """Make the dashboard, or read runs back.

    Args:
        argv: The arguments.

    Returns:
        0 when done.

    Raises:
        UserError: Something the user can fix.
    """
    given = make_parser().parse_args(list(argv))
    if given.read is not None:
        if given.spec is not None or given.report:
            raise UserError("--read prints what is on this disk, and makes no dashboard: leave out --spec and --report")
        return _read(given.read)
    from slm_ray.report.dashboard import SECTIONS
    from slm_ray.report.dashboard_wandb import REPORT, WORKSPACE, build, default_entity, save, specification

    kind = REPORT if given.report else WORKSPACE
    # Built without an entity, nobody is asked for anything: so it is checked before anything is sent.
    checked = specification(build(kind, "", given.project))
    if given.spec is not None:
        write_json(given.spec, checked | {"entity": given.entity})
        panels = sum(len(section.panels) for section in SECTIONS)
        print(f"{given.spec}: a {kind} of {panels} panels, checked; nothing was sent")
        return 0
    if not has_key():
        raise UserError(
            f"there is no W&B key on this machine, so the {kind} cannot be saved: run `wandb login`, or set "
            "WANDB_API_KEY; --spec FILE writes it to a file instead"
        )
    print(save(build(kind, given.entity or default_entity(), given.project)))
    return 0


def _read(path: Path) -> int:
    from slm_ray.report.offline_run import describe, find_offline_runs, read_offline_run, sync_command

    runs = [read_offline_run(file) for file in find_offline_runs(path)]
    print("\n\n".join(map(describe, runs)))
    waiting = [run for run in runs if not run.is_sent]
    if len(waiting) > 1:
        print(f"\nsend all of them:\n{sync_command(waiting)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
