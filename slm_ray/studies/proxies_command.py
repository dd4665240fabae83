"""``python -m slm_ray.proxies``: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.options import add_command_flags, build_config, load_config, refuse_changes
from slm_ray.config.parser import Parser
from slm_ray.config.units import format_count, parse_number
from slm_ray.runtime.commands import command_line
from slm_ray.runtime.runfolder import CONFIG_FILE, RunFolder
from slm_ray.search.proxy_candidates import choose_candidates
from slm_ray.search.registry import parse_objectives
from slm_ray.studies.proxies_config import ProxiesConfig, default_out

_MAY_CHANGE = ("threads", "concurrent", "device", "address", "storage")


def make_parser() -> Parser:
    """The command's parser: a flag per option, and a few that are not options of a run."""
    parser = Parser(
        prog="python -m slm_ray.proxies",
        description="Report how well each proxy ranks a search's candidates as a short training does.",
    )
    parser.add_argument("--resume", type=Path, default=None, metavar="OUT", help="continue the report in this folder")
    add_command_flags(parser, ProxiesConfig, dry_run="print what would be trained; spend nothing")
    return parser


def main(argv: Sequence[str]) -> int:
    """Report on proxies.

    Args:
        argv: The arguments.

    Returns:
        0 when done.

    Raises:
        UserError: Something the user can fix.
    """
    given = vars(make_parser().parse_args(list(argv)))
    config_file, resume, dry_run = (given.pop(name) for name in ("config", "resume", "dry_run"))
    given.pop("debug")
    command = command_line("python -m slm_ray.proxies", argv)
    if resume is not None:
        if dry_run:
            raise UserError("--dry-run is for a new report, and --resume continues one: give one of them")
        return _resume(resume, config_file, given)
    config = load_config(ProxiesConfig, config_file, given)
    config.check()
    chosen = _Chosen(config)
    if dry_run:
        chosen.show()
        return 0
    out = Path(config.out) if config.out else default_out(datetime.now().strftime("%Y%m%d-%H%M%S"))
    return _execute(chosen, RunFolder.create(out, config.to_json() | {"command": command}), command)


class _Chosen:
    """A finished search and the candidates of it that are looked at."""

    def __init__(self, config: ProxiesConfig) -> None:
        # The one import upwards: only the search can make sub-networks of its own records. Nothing imports this module.
        from slm_ray.search.candidates import FinishedSearch

        self.config = config
        self.search = FinishedSearch.open(Path(str(config.run)))
        config.sequences_of_a_step(self.search.config.sequence_length)
        objective = parse_objectives(self.search.config.objectives)[0]
        records, front = self.search.records, self.search.front
        self.records = choose_candidates(records, front, objective, config.candidates, config.seed)

    def show(self) -> None:
        """Print the candidates and what their training takes."""
        config, front = self.config, set(self.search.front)
        for record in self.records:
            where = "front" if record["trial"] in front else record["decided"]
            values = ", ".join(f"{name} {value:.6g}" for name, value in record["objectives"].items())
            print(f"trial {record['trial']:>5}  {where:9}  {values}")
        teacher = self.search.teacher_flops if config.distill == "full" else 0
        flops = parse_number(config.tokens) * sum(3 * record["cost"]["flops"] + teacher for record in self.records)
        length = self.search.config.sequence_length
        steps = f"steps of {config.sequences_of_a_step(length) * length:,}"
        print(f"{len(self.records)} candidates x {config.tokens} tokens in {steps}: {format_count(flops)} FLOPs")
        print(f"proxies: {', '.join(config.names())}")
        print("Nothing was loaded, started or written.")


def _resume(path: Path, config_file: Path | None, given: dict[str, Any]) -> int:
    """Continue a report with the options it was started with."""
    from slm_ray.studies.correlate import REPORT_FILE, TABLE_FILE

    refuse_changes(given, config_file, _MAY_CHANGE, "report")
    folder = RunFolder.open_existing(path, given.get("storage"))
    try:
        saved = folder.config()
        command = str(saved.pop("command", "python -m slm_ray.proxies"))
        config = build_config(ProxiesConfig, saved | given, source=str(path / CONFIG_FILE))
        if folder.file(REPORT_FILE).exists():
            print(f"{path} is finished already:\n")
            print(folder.file(TABLE_FILE).read_text(encoding="utf-8"), end="")
            folder.close()
            return 0
        chosen = _Chosen(config)
    except UserError:
        folder.close()
        raise
    return _execute(chosen, folder, command)


def _execute(chosen: _Chosen, folder: RunFolder, command: str) -> int:
    from slm_ray.studies.correlate import CorrelationRun, SearchFacts

    search = chosen.search.config
    facts = SearchFacts(search.sequence_length, search.data, search.text_field)
    try:
        CorrelationRun(chosen.config, folder, command, chosen.records, chosen.search.load, facts).execute()
    finally:
        folder.close()
    return 0
