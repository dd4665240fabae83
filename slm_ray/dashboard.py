"""``slm-ray dashboard``: a W&B dashboard of searches, trainings, evaluations and sweeps, made by code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from slm_ray.config.errors import UserError
from slm_ray.config.parser import Parser
from slm_ray.report.dashboard import REPORT, WORKSPACE, build, default_entity, save
from slm_ray.runtime.commands import run_command
from slm_ray.runtime.trackers import has_key, wandb_project


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        prog="python -m slm_ray.dashboard",
        description="Make a W&B workspace or report of runs tracked with --tracker wandb.",
    )
    parser.add_argument("--entity", default=None, help="W&B user or team [default: whom the key belongs to]")
    parser.add_argument("--project", default=wandb_project(), help="W&B project")
    parser.add_argument("--report", action="store_true", help="a report instead of a workspace")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str]) -> int:
    """Make the dashboard and print its address."""
    given = make_parser().parse_args(list(argv))
    kind = REPORT if given.report else WORKSPACE
    if not has_key():
        raise UserError(
            f"there is no W&B key on this machine, so the {kind} cannot be saved: run `wandb login`, or set "
            "WANDB_API_KEY"
        )
    print(save(build(kind, given.entity or default_entity(), given.project)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
