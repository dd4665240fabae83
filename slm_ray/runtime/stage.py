"""A stage's command, declared once: flags, ``--config``, ``--resume``, ``--dry-run``, its run folder, its summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from slm_ray.config.base import Config, add_flags, build_config, flag_of, flatten, load_config, refuse_changes
from slm_ray.config.errors import UserError
from slm_ray.config.parser import Parser
from slm_ray.records.base import write_record
from slm_ray.records.run import RunRecord, run_of
from slm_ray.runtime.commands import Interrupted, command_line, run_command
from slm_ray.runtime.runfolder import RunFolder, find_run

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A command that works in a run folder and can be resumed."""

    name: str  # As in ``slm-ray NAME``
    summary: str  # One line for ``--help``
    config: type[C]  # Its options, among them ``out`` and ``storage``
    # Does the work in a run's folder, and goes on from whatever is finished there; it imports what is heavy itself, and
    # calls ``folder.begin()`` once mistakes in the command are behind it
    execute: Callable[[C, RunFolder], None]
    show: Callable[[Path], None]  # Prints the summary of a finished run
    plan: Callable[[C], str]  # The text of ``--dry-run``; spends nothing
    result_file: str  # The file whose existence says that a run is finished
    may_change: tuple[str, ...]  # The options that may be given with ``--resume``
    default_out: Callable[[C, str], str]  # The run's folder when none is given, from the config and a time stamp
    # Refuses what can be refused without heavy imports (names, sizes, files that must exist); called before anything
    # else, so that a typo takes no second and leaves no folder
    check: Callable[[C], None] = lambda _config: None
    may_grow: tuple[str, ...] = ()  # The options that may be raised with ``--resume``: even a finished run goes on
    # Fills in what depends on this machine or on other options, such as a budget of time; the run is recorded with it
    resolve: Callable[[C], C] = lambda config: config
    # Does the work of a process that is not the command's first (torchrun starts several), and returns whether this is
    # one; such a process has no run folder
    follow: Callable[[C], bool] = lambda _config: False
    # A run's folder takes more runs of the command, each of which adds what is not there yet; none is ever finished
    gathers: bool = False

    @property
    def prog(self) -> str:
        """How the command is called."""
        return f"python -m slm_ray.{self.name}"

    def parser(self) -> Parser:
        """The command's parser: a flag per option, and those that are no options of a run."""
        parser = Parser(prog=self.prog, description=self.summary[0].upper() + self.summary[1:] + ".")
        parser.add_argument("--resume", type=Path, default=None, metavar="RUN", help="continue the run in this folder")
        parser.add_argument("--config", type=Path, default=None, help="YAML file of options; flags come over it")
        parser.add_argument("--dry-run", action="store_true", help="print what would be done and what it costs")
        parser.add_argument("--debug", action="store_true", help="show tracebacks")
        add_flags(parser, self.config)
        return parser

    def main(self, argv: Sequence[str]) -> int:
        """Run the command."""
        given = vars(self.parser().parse_args(list(argv)))
        config_file, resume, dry_run = given.pop("config"), given.pop("resume"), given.pop("dry_run")
        given.pop("debug")
        if resume is not None:
            if dry_run or config_file:
                flag = "--dry-run" if dry_run else "--config"
                raise UserError(f"{flag} belongs to a new run, and --resume continues one: give one of them")
            return self._resume(resume, given)
        config = load_config(self.config, config_file, given)
        self.check(config)
        config = self.resolve(config)
        if dry_run:
            print(self.plan(config))
            return 0
        if self.follow(config):
            return 0
        values = flatten(config)
        out = Path(values["out"] or self.default_out(config, datetime.now().strftime("%Y%m%d-%H%M%S")))
        folder = self._folder(out, RunRecord(stage=self.name, command=command_line(self.prog, argv), options=values))
        self._work(config, folder)
        self.show(out)
        return 0

    def _folder(self, out: Path, record: RunRecord) -> RunFolder:
        """A new run's folder; that of an earlier run where runs gather."""
        if not self.gathers or not (out / RunRecord.FILE).exists():
            return RunFolder.create(out, record)
        run_of(self.name, out)
        folder = RunFolder.open_existing(out, record.options.get("storage"))
        write_record(out, record)
        return folder

    def _resume(self, path: Path, given: dict[str, Any]) -> int:
        """Continue a run with the options it was started with."""
        find_run(path, given.get("storage"))
        record = run_of(self.name, path)
        refuse_changes(given, (*self.may_change, *self.may_grow), path)
        config = build_config(self.config, record.options | given, source=str(path / RunRecord.FILE))
        grows = self._grows(flatten(config), record.options, path)
        if (path / self.result_file).exists() and not self.gathers and not grows:
            print(f"{path} is finished already:\n")
        else:
            if self.follow(config):
                return 0
            folder = RunFolder.open_existing(path, given.get("storage"))
            if grows:
                write_record(path, record.model_copy(update={"options": flatten(config)}))
                (path / self.result_file).unlink(missing_ok=True)  # it is of the smaller run
            self._work(config, folder)
        self.show(path)
        return 0

    def _grows(self, now: dict[str, Any], before: dict[str, Any], path: Path) -> bool:
        """Whether a resume asks for more than the run was started with, after checking that it asks for no less."""
        for name in self.may_grow:
            if now[name] < before[name]:
                rule = f"is below the {before[name]:,} of {path}: a resume can only raise it"
                raise UserError(f"{flag_of(name)} {now[name]:,} {rule}")
        return any(now[name] > before[name] for name in self.may_grow)

    def _work(self, config: C, folder: RunFolder) -> None:
        """Run the work in an open folder; say how to go on where that can help."""
        try:
            self.execute(config, folder)
        except KeyboardInterrupt:
            raise Interrupted(str(folder.path) if folder.begun else None) from None
        except UserError as error:
            if error.is_resumable and folder.begun:
                raise UserError(f"{error}, then continue with --resume {folder.path}") from error
            raise
        finally:
            if folder.begun:
                folder.close()
            else:  # the corrected command may use the same folder
                folder.forget()

    def run(self) -> None:
        """End the process with the command's exit status; for ``__main__``."""
        sys.exit(run_command(self.main))
