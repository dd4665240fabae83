"""``python -m slm_ray.search``: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.options import add_command_flags, build_config, load_config, refuse_changes
from slm_ray.config.parser import Parser
from slm_ray.runtime.commands import command_line
from slm_ray.runtime.runfolder import RunFolder
from slm_ray.search.config import SearchConfig, default_out

MAY_CHANGE = ("workers", "threads", "address", "storage", "tracker")


def make_parser() -> Parser:
    """The command's parser: a flag per option, and a few that are not options of a run."""
    parser = Parser(prog="python -m slm_ray.search", description="Search a teacher for its best sub-networks.")
    parser.add_argument("--resume", type=Path, default=None, metavar="RUN", help="continue the run in this folder")
    add_command_flags(parser, SearchConfig, dry_run="print what would be done and what it costs; spend nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run a search.

    Args:
        argv: The arguments.

    Returns:
        0 when done.

    Raises:
        UserError: Something the user can fix.
    """
    given = vars(make_parser().parse_args(list(argv)))
    config_file, resume, dry_run = given.pop("config"), given.pop("resume"), given.pop("dry_run")
    given.pop("debug")
    command = command_line("python -m slm_ray.search", argv)
    if resume is not None and dry_run:
        raise UserError("--dry-run shows what a new run would cost, and --resume continues one: give one of them")
    if resume is not None:
        return _resume(resume, config_file, given)
    config = load_config(SearchConfig, config_file, given)
    config.check()
    if dry_run:
        from slm_ray.search.dry_run import print_plan

        print_plan(config)
        return 0
    out = Path(config.out) if config.out else default_out(config, datetime.now().strftime("%Y%m%d-%H%M%S"))
    folder = RunFolder.create(out, config.to_json() | {"command": command})
    return _execute(config, folder, command, is_new=True)


def _resume(path: Path, config_file: Path | None, given: dict[str, Any]) -> int:
    """Continue a run with the options it was started with."""
    from slm_ray.search.run import RESULT_FILE, print_summary

    refuse_changes(given, config_file, MAY_CHANGE, "run")
    folder = RunFolder.open_existing(path, given.get("storage"))
    if folder.file(RESULT_FILE).exists():
        print(f"{path} is finished already:\n")
        print_summary(path)
        folder.close()
        return 0
    saved = folder.config()
    command = str(saved.pop("command", "python -m slm_ray.search"))
    config = build_config(SearchConfig, saved | given, source=str(path / "config.json"))
    return _execute(config, folder, command)


def _execute(config: SearchConfig, folder: RunFolder, command: str, *, is_new: bool = False) -> int:
    from slm_ray.search.inputs import INPUTS_FILE
    from slm_ray.search.phases import PHASES_FILE
    from slm_ray.search.run import SearchRun, print_summary

    try:
        SearchRun(config, folder, command).execute()
        print_summary(folder.path)
    except UserError:
        if is_new and not folder.file(INPUTS_FILE).exists():
            folder.file(PHASES_FILE).unlink(missing_ok=True)
            folder.forget()
        raise
    finally:
        folder.close()
    return 0
