"""``python -m slm_ray.sweep``: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.parser import Parser
from slm_ray.config.yaml_files import parse_yaml
from slm_ray.records.base import write_record
from slm_ray.records.files import explain_os_error, write_text
from slm_ray.records.run import RunRecord, run_of
from slm_ray.records.sweep import SweepOptions
from slm_ray.runtime.commands import command_line
from slm_ray.runtime.runfolder import RunFolder, find_run
from slm_ray.runtime.storage import STORAGE_HELP
from slm_ray.studies.points import Point, expand
from slm_ray.studies.reader import parse_sweep, read_sweep
from slm_ray.studies.run import Options, SweepRun, raise_failures, read_outcomes
from slm_ray.studies.sweep_file import SweepFile
from slm_ray.studies.table import FORMATS, as_text, export

PROG = "python -m slm_ray.sweep"
_MACHINE = ("device_flops", "mfu", "price_per_hour", "memory")


def make_parser() -> Parser:
    """The command's parser."""
    parser = Parser(prog=PROG, description="Run a sweep file: a base run and what varies over it. docs/sweeps.md.")
    parser.add_argument("file", nargs="?", type=Path, default=None, help="sweep file, e.g. sweeps/sizes.yaml")
    parser.add_argument("--scale", default=None, help="which of the file's scales, e.g. tiny or paper [default: tiny]")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
                        help="over everything that the file says; may be given several times")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print points and what they cost; spend nothing")
    parser.add_argument("--resume", type=Path, default=None, metavar="RUN", help="continue the sweep in this folder")
    parser.add_argument("--max-runs", type=int, default=None, metavar="N", help="allow so many points [default: 200]")
    parser.add_argument("--concurrent", type=int, default=None, metavar="N",
                        help="points at once [default: as many as fit]")  # fmt: skip
    parser.add_argument("--launcher", choices=("ray", "local"), default="ray",
                        help="ray: trials of Ray Tune; local: one after the other in this process")  # fmt: skip
    parser.add_argument("--storage", default=None, help=STORAGE_HELP)
    parser.add_argument("--address", default=None, help="Ray cluster to join, e.g. auto [default: start one here]")
    parser.add_argument("--tracker", choices=("none", "wandb"), default="none",
                        help="where metrics go beside the records")  # fmt: skip
    parser.add_argument("--out", type=Path, default=None, help="run folder [default: runs/NAME-SCALE-TIME]")
    parser.add_argument("--table", type=Path, nargs="+", default=None, metavar="RUN",
                        help="print the table of these sweeps, finished or not")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default=None, help="of --table")
    parser.add_argument("--wandb-sweep", type=Path, default=None, metavar="FILE", help="write the equivalent W&B sweep")
    parser.add_argument("--device-flops", default=None, metavar="N", help="dry run: FLOP/s of a device, e.g. 312T")
    parser.add_argument("--mfu", default=None, metavar="SHARE", help="dry run: the share of them that is reached")
    parser.add_argument("--price-per-hour", default=None, metavar="DOLLARS", help="dry run: of a device")
    parser.add_argument("--device-memory", default=None, metavar="BYTES", help="of a device, e.g. 80G", dest="memory")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str]) -> int:
    """Sweep."""
    given = make_parser().parse_args(list(argv))
    _check(given)
    if given.table is not None:
        return _tables(given.table, given.format, given.out)
    if given.resume is not None:
        return _resume(given)
    sweep = read_sweep(given.file, given.scale, given.settings)
    if given.wandb_sweep is not None:
        return _write_wandb(sweep, given.wandb_sweep)
    if given.dry_run:
        return _dry_run(sweep, given)
    points = expand(sweep, given.max_runs)
    _check_memory(sweep, points, given)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    out = given.out or Path("runs") / "-".join(filter(None, (sweep.name, sweep.scale, stamp)))
    command = command_line(PROG, argv)
    text = _read(given.file)
    options = SweepOptions(name=sweep.name, source=str(given.file), file=text, scale=given.scale,
                           settings=tuple(given.settings), max_runs=given.max_runs, storage=given.storage)  # fmt: skip
    folder = RunFolder.create(out, RunRecord(stage="sweep", command=command, options=options.to_json()))
    folder.begin()
    write_text(folder.file("sweep.yaml"), text)
    return _execute(sweep, folder, given, command)


def _check(given: Any) -> None:
    """Refuse what does not go together."""
    for name in ("max_runs", "concurrent"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if given.format and given.table is None:
        raise UserError("--format is of --table RUN: give that as well")
    if given.file is None and given.table is None and given.resume is None:
        raise UserError("name a sweep file, e.g. sweeps/debug.yaml, or --resume RUN, or --table RUN (see --help)")
    if given.resume is not None and given.dry_run:
        raise UserError("--dry-run shows what a new sweep would cost, and --resume continues one: give one of them")
    if given.resume is not None and (given.scale or given.settings or given.out):
        flag = "--scale" if given.scale else "--set" if given.settings else "--out"
        raise UserError(f"{flag} cannot be changed when a sweep is resumed: start a new one for that")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error


def _dry_run(sweep: SweepFile, given: Any) -> int:
    from slm_ray.studies.dry_run import make_machine, print_plan

    machine = make_machine(sweep.machine, {name: getattr(given, name) for name in _MACHINE})
    print_plan(sweep, expand(sweep, given.max_runs), machine)
    return 0


def _check_memory(sweep: SweepFile, points: Sequence[Point], given: Any) -> None:
    from slm_ray.studies.dry_run import check_before_start, make_machine

    flags = {name: getattr(given, name) for name in _MACHINE}
    # What is stated counts for a cluster; here, it is this machine that the points must fit into.
    stated = given.memory is not None or (given.address is not None and sweep.machine)
    if stated:
        check_before_start(points, make_machine(sweep.machine, flags))
    elif given.address is None:
        check_before_start(points, None)


def _write_wandb(sweep: SweepFile, path: Path) -> int:
    from slm_ray.studies.finish import wandb_sweep

    write_text(path, wandb_sweep(sweep))
    print(f"{path}: start it with `wandb sweep {path}`, then the agents that it names")
    return 0


def _saved(path: Path) -> tuple[SweepFile, SweepOptions, str]:
    """The sweep that a folder was started with, its options and its command."""
    if not (path / RunRecord.FILE).is_file():
        raise UserError(f"{path} holds no sweep ({RunRecord.FILE} is missing): give the folder of one")
    record = run_of("sweep", path)
    saved = SweepOptions.model_validate(record.options)
    loaded = parse_yaml(saved.file, str(path / RunRecord.FILE))
    sweep = parse_sweep(loaded, saved.source, saved.scale, saved.settings, Path(saved.source).stem)
    return sweep, saved, record.command


def _resume(given: Any) -> int:
    """Continue a sweep; with a file, what that adds is run too, and what is done is not done again."""
    find_run(given.resume, given.storage)
    sweep, saved, command = _saved(given.resume)
    if given.file is not None:
        sweep = read_sweep(given.file, saved.scale, saved.settings)
    given.max_runs = given.max_runs or saved.max_runs
    _check_memory(sweep, expand(sweep, given.max_runs), given)
    folder = RunFolder.open_existing(given.resume, given.storage)
    if given.file is not None:
        text = _read(given.file)
        write_text(folder.file("sweep.yaml"), text)
        options = saved.model_copy(update={"file": text, "source": str(given.file)})
        write_record(folder.path, RunRecord(stage="sweep", command=command, options=options.to_json()))
    return _execute(sweep, folder, given, command)


def _execute(sweep: SweepFile, folder: RunFolder, given: Any, command: str) -> int:
    from slm_ray.studies.finish import track, write_results

    try:
        options = Options(given.launcher, given.concurrent, given.address, given.tracker, given.max_runs)
        run = SweepRun(sweep, folder, options)
        run.console.line(f"run folder: {folder.path}")
        points = run.execute()
        rows, findings, pictures = write_results(sweep, points, folder.path, run.outcomes, command)
        print(as_text(rows))
        print("\n".join(["", *findings.lines]) if findings.lines else "")
        track(sweep, given.tracker, folder.path, rows, pictures, run.console)
        run.console.line(f"table: {folder.path / 'table.csv'} (also .parquet, .md, .txt)")
        raise_failures(points, folder.path, run.outcomes)
    finally:
        folder.close()
    return 0


def _tables(runs: Sequence[Path], kind: str | None, out: Path | None) -> int:
    """The tables of sweeps, one under the other."""
    from slm_ray.studies.finish import table_rows

    rows = []
    for path in runs:
        sweep, saved, _ = _saved(path)  # only read: a sweep that is running may be looked at
        points = expand(sweep, saved.max_runs)
        rows += table_rows(sweep, points, path, read_outcomes(path))
    if kind is None and out is None:
        print(as_text(rows))
    else:
        print(export(rows, kind or "csv", out), end="")
    return 0
