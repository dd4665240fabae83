"""``python -m slm_ray.pipeline``: search, logits, pretraining, evaluation and report, each where it is needed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.options import add_flags
from slm_ray.config.parser import Parser
from slm_ray.pipeline_options import PipelineConfig, read_options
from slm_ray.pipeline_stages import SKIP, STAGES, Pipeline, Plan
from slm_ray.records.files import explain_os_error
from slm_ray.runtime.commands import EXIT_INTERRUPTED, run_command
from slm_ray.runtime.mirror import bring_back
from slm_ray.runtime.progress import Console
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.runtime.storage import storage_of


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        prog="python -m slm_ray.pipeline",
        description="Search, capture logits, pretrain, evaluate and report; what is done and unchanged is skipped.",
    )
    parser.add_argument(
        "--config", type=Path, default=None, help="YAML file with sections search, logits, pretrain and evaluate"
    )
    parser.add_argument("--from", dest="first", choices=STAGES, default=None, help="run this stage and those after it")
    parser.add_argument("--dry-run", action="store_true", help="print every stage's command and what would be skipped")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    add_flags(parser, PipelineConfig)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the pipeline; the same command again continues where an earlier one ended.

    Args:
        argv: The arguments.

    Returns:
        0 when every stage is done, else the status of the one that is not.

    Raises:
        UserError: Something the user can fix.
    """
    given = vars(make_parser().parse_args(list(argv)))
    config_file, first, dry_run = given.pop("config"), given.pop("first"), given.pop("dry_run")
    given.pop("debug")
    options = read_options(config_file, given)
    place = storage_of(options.storage)
    if place and not dry_run:
        bring_back(options.out, place)
    pipeline = Pipeline(options)
    if first == "logits" and first not in pipeline.names():
        raise UserError(f"--from logits: --distill {pipeline.options.pretrain.distill} reads no store; name another")
    if dry_run:
        return _print_plans(pipeline, first)
    try:
        pipeline.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, f"creating {pipeline.out}") from error
    folder = RunFolder(pipeline.out)  # its lock: one pipeline at a time works in a folder
    try:
        folder.mirror_to(options.storage)
        pipeline.state["command"] = shlex.join(["python", "-m", "slm_ray.pipeline", *_without_from(argv)])
        pipeline.state["teacher"] = pipeline.teacher
        return _run_all(pipeline, first)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept; give the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        folder.close()


def _without_from(argv: Sequence[str]) -> list[str]:
    """The arguments that say what the pipeline is, whatever was asked to be done again."""
    words = list(argv)
    if "--from" in words:
        place = words.index("--from")
        del words[place : place + 2]
    return [word for word in words if not word.startswith("--from=")]


def _forced(pipeline: Pipeline, name: str, first: str | None) -> bool:
    return first is not None and pipeline.names().index(name) >= pipeline.names().index(first)


def _print_plans(pipeline: Pipeline, first: str | None) -> int:
    """Every stage's command, and whether it would be run; nothing is written."""
    renewed: set[str] = set()
    for name in pipeline.names():
        plan = pipeline.plan(name, force=_forced(pipeline, name, first), renewed=renewed)
        if plan.action != SKIP:
            renewed.add(name)
        print(f"{name}: {plan.action} ({plan.reason})\n  {pipeline.command(name, plan.argv)}")
        for path in plan.aside:
            print(f"  {path} is moved to {_free_name(path)}")
    return 0


def _run_all(pipeline: Pipeline, first: str | None) -> int:
    console = Console()
    for number, name in enumerate(pipeline.names(), start=1):
        plan = pipeline.plan(name, force=_forced(pipeline, name, first))
        console.line(f"[{number}/{len(pipeline.names())}] {name}: {plan.action} ({plan.reason})")
        if plan.action == SKIP:
            continue
        _move_aside(plan, console)
        status = pipeline.run(name, plan)
        if status:
            return status
    console.line(f"done: {pipeline.out / 'report.html'}")
    return 0


def _free_name(path: Path) -> Path:
    number = 1
    while (place := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return place


def _move_aside(plan: Plan, console: Console) -> None:
    """Make room for a stage's output; what is there is kept under another name."""
    for path in plan.aside:
        place = _free_name(path)
        try:
            path.rename(place)
        except OSError as error:
            raise explain_os_error(error, f"moving {path} aside") from error
        console.line(f"{path} was moved to {place}")


if __name__ == "__main__":
    sys.exit(run_command(main))
