"""``slm-ray pipeline``: search, logits, pretraining, evaluation and report, each where it is needed."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm_ray.config.base import add_flags, flag_of, flatten, given_flag_pairs, given_flags
from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.errors import UserError
from slm_ray.config.parser import Parser
from slm_ray.evaluate.config import MAY_CHANGE as EVALUATE_MAY_CHANGE
from slm_ray.pipeline_options import Options, PipelineConfig, read_options
from slm_ray.pretrain.config import MAY_CHANGE as PRETRAIN_MAY_CHANGE
from slm_ray.records.base import find_record, write_record
from slm_ray.records.files import explain_os_error
from slm_ray.records.logits import work_folder
from slm_ray.records.pipeline import PipelineState, StageState
from slm_ray.records.search import SearchResult
from slm_ray.records.training import TrainResult
from slm_ray.runtime.commands import EXIT_INTERRUPTED, command_line, run_command
from slm_ray.runtime.mirror import bring_back
from slm_ray.runtime.progress import Console
from slm_ray.runtime.runfolder import CONFIG_FILE, RunFolder
from slm_ray.runtime.storage import storage_of
from slm_ray.search.command import MAY_CHANGE as SEARCH_MAY_CHANGE

STAGES = ("search", "logits", "pretrain", "evaluate", "report")
# What a stage reads of the others'.
_NEEDS = {
    "search": (), "logits": (), "pretrain": ("search", "logits"), "evaluate": ("search", "pretrain"),
    "report": ("search", "logits", "pretrain", "evaluate"),
}  # fmt: skip
_MODULES = {
    "search": "slm_ray.search.command", "logits": "slm_ray.distill.command", "pretrain": "slm_ray.pretrain.command",
    "evaluate": "slm_ray.evaluate.command", "report": "slm_ray.report.command",
}  # fmt: skip
# Options that change how a stage is run and not what comes of it.
_MAY_CHANGE = {
    "search": SEARCH_MAY_CHANGE, "pretrain": PRETRAIN_MAY_CHANGE,
    "logits": ("workers", "threads", "address", "device"), "evaluate": EVALUATE_MAY_CHANGE,
}  # fmt: skip
_SET_BY_STAGES = ("student", "store", "out")
_PATHS = ("teacher", "data", "space", "shards")  # options that may name something on this disk
_LOOKED_AT_BYTES = 1 << 20

RUN, RESUME, SKIP = "run", "resume", "skip"


@dataclass(frozen=True)
class Plan:
    """What is to be done about a stage."""

    action: str  # ``run``, ``resume`` or ``skip``
    reason: str  # Why, in a few words
    argv: list[str]  # Its command's arguments
    aside: tuple[Path, ...] = ()  # What lies where its output goes and has to be moved away first


def file_signature(path: Path) -> Any:
    """What is compared to tell whether a file or folder that the user named has changed.

    Names, sizes and the first MiB of each file: reading all of a large corpus at every start would take too long.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        with file.open("rb") as handle:
            start = hashlib.sha256(handle.read(_LOOKED_AT_BYTES)).hexdigest()
        found.append([os.path.relpath(file, path), file.stat().st_size, start])
    return found


def _command(name: str, argv: Sequence[str]) -> str:
    return command_line(f"python -m slm_ray.{name}", argv)


class Pipeline:
    """The stages of one folder."""

    def __init__(self, options: Options) -> None:
        self.options, self.out = options, options.out
        remedy = "delete it and give the command again"
        self.state = find_record(self.out, PipelineState, remedy) or PipelineState()

    def names(self) -> tuple[str, ...]:
        """The stages that there are, in order."""
        return tuple(name for name in STAGES if name != "logits" or self.options.logits is not None)

    def plan(self, name: str, *, force: bool = False, renewed: Set[str] = frozenset()) -> Plan:
        """What is to be done about a stage, judged by what lies on the disk now."""
        kept = self.state.stages.get(name)
        there = tuple(path for path in self._places(name) if path.exists())
        reason = ""
        if force:
            reason = "asked for with --from"
        elif kept is None or kept.key != self.key(name):
            reason = "its options or inputs have changed" if kept else "not done yet"
        elif renewed & set(_NEEDS[name]):
            reason = "a stage that it reads is run"
        elif kept.output is not None:
            if kept.output == self.output_digest(name):
                return Plan(SKIP, "done, and unchanged", self.argv(name))
            reason = "its output was changed or removed"
        elif name in ("search", "pretrain"):
            if (self.out / name / CONFIG_FILE).exists():
                return Plan(RESUME, "interrupted", self._resume_argv(name))
            reason = "it had hardly begun"
        elif there:  # these go on by the same command
            return Plan(RESUME, "interrupted", self.argv(name))
        return Plan(RUN, reason or "not done yet", self.argv(name), there)

    def _places(self, name: str) -> list[Path]:
        """Where a stage's output lies."""
        if name == "report":
            return []  # made anew at once, from records that are all still there
        return [self.out / name, *([work_folder(self.out / name)] if name == "logits" else [])]

    def argv(self, name: str) -> list[str]:
        """A stage's arguments, with what the stages before it have left."""
        if name == "report":
            return [str(self.out)]
        config = getattr(self.options, name)
        if name == "pretrain":
            config = config.replace(student=[str(winner) for winner in self._winners()])
        if name == "evaluate":
            config = config.replace(model=self.models())
        return given_flags(config)

    def _resume_argv(self, name: str) -> list[str]:
        """What goes on with a stage; of its options those that may change."""
        allowed = {flag for option in _MAY_CHANGE[name] for flag in (flag_of(option), flag_of(f"no_{option}"))}
        pairs = given_flag_pairs(getattr(self.options, name))
        return ["--resume", str(self.out / name), *(word for pair in pairs if pair[0] in allowed for word in pair)]

    def _winners(self) -> list[Path]:
        """The search's winners, those expected while it has not found them."""
        result = find_record(self.out / "search", SearchResult)
        if result is None:
            return [Path(path) for path in self.options.pretrain.model.students]
        return [self.out / "search" / winner.folder for winner in result.winners]

    def _trained(self) -> list[Path]:
        """The models that pretraining has left."""
        result = find_record(self.out / "pretrain", TrainResult)
        return [self.out / "pretrain" / model.model for model in result.models if model.model] if result else []

    def models(self) -> tuple[str, ...]:
        """What is evaluated: the trained winner, its teacher, the winners before training, the other models, and more.

        The first is the one that the others are compared with.
        """
        trained = [str(model) for model in self._trained()] or [str(self.out / "pretrain" / "NAME" / "model")]
        added = self.options.evaluate.model
        return tuple(dict.fromkeys([trained[0], self.teacher, *map(str, self._winners()), *trained[1:], *added]))

    @property
    def teacher(self) -> str:
        """The teacher that pretraining distills from."""
        return self.options.pretrain.model.teacher or self.options.search.space.teacher

    def key(self, name: str) -> str:
        """The digest of all that a stage's output depends on."""
        config = getattr(self.options, name, None)
        values = flatten(config) if config is not None else {}
        left_out = {*_MAY_CHANGE.get(name, ()), *_SET_BY_STAGES}
        options = {key: value for key, value in values.items() if key not in left_out}
        named = {key: file_signature(Path(str(options[key])).expanduser()) for key in _PATHS
                 if options.get(key) and Path(str(options[key])).expanduser().exists()}  # fmt: skip
        before = {need: self.state.stages.get(need) for need in _NEEDS[name] if need in self.names()}
        inputs = {need: [entry.key, entry.output] if entry else None for need, entry in before.items()}
        return digest_json({"stage": name, "options": options, "files": named, "inputs": inputs})

    def output_digest(self, name: str) -> str | None:
        """The digest of what a stage has left; None where it is not whole."""
        folder = self.out / name
        if name == "report":
            pages = [self.out / "report.html", self.out / "report.md"]
            return digest_json([sha256_file(page) for page in pages]) if all(p.is_file() for p in pages) else None
        last = folder / {"logits": "manifest.json", "evaluate": "evaluate.json"}.get(name, "result.json")
        if not last.is_file():
            return None
        try:
            folders = self._winners() if name == "search" else self._trained() if name == "pretrain" else []
        except UserError:  # damaged: another digest than that of what was left
            folders = []
        files = [[folder / CONFIG_FILE, *sorted(folder.glob("*.safetensors"))] for folder in folders]
        models = [[sha256_file(file) for file in one if file.is_file()] for one in files]
        return digest_json([sha256_file(last), models])

    def run(self, name: str, plan: Plan) -> int:
        """Run a stage through its command's own main function, and keep that it is done."""
        began = time.monotonic()
        before = self.state.stages[name].seconds if plan.action == RESUME else 0.0
        entry = StageState(key=self.key(name), command=_command(name, plan.argv), seconds=before)
        self._keep(name, entry)
        try:
            status: int = importlib.import_module(_MODULES[name]).main(plan.argv)
        finally:
            entry = entry.model_copy(update={"seconds": round(before + time.monotonic() - began, 3)})
            self._keep(name, entry)
        if status == 0:
            finished = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._keep(name, entry.model_copy(update={"output": self.output_digest(name), "finished_at": finished}))
        return status

    def _keep(self, name: str, entry: StageState) -> None:
        self.state = self.state.model_copy(update={"stages": {**self.state.stages, name: entry}})
        write_record(self.out, self.state)


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
    """Run the pipeline; the same command again continues where an earlier one ended."""
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
    forced = pipeline.names()[pipeline.names().index(first) :] if first else ()
    if dry_run:
        return _print_plans(pipeline, forced)
    try:
        pipeline.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, f"creating {pipeline.out}") from error
    folder = RunFolder(pipeline.out)  # its lock: one pipeline at a time works in a folder
    try:
        folder.mirror_to(options.storage)
        command = _command("pipeline", _without_from(argv))
        pipeline.state = pipeline.state.model_copy(update={"command": command, "teacher": pipeline.teacher})
        return _run_all(pipeline, forced)
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


def _print_plans(pipeline: Pipeline, forced: Sequence[str]) -> int:
    """Every stage's command, and whether it would be run; nothing is written."""
    renewed: set[str] = set()
    for name in pipeline.names():
        plan = pipeline.plan(name, force=name in forced, renewed=renewed)
        if plan.action != SKIP:
            renewed.add(name)
        print(f"{name}: {plan.action} ({plan.reason})\n  {_command(name, plan.argv)}")
        for path in plan.aside:
            print(f"  {path} is moved to {_free_name(path)}")
    return 0


def _run_all(pipeline: Pipeline, forced: Sequence[str]) -> int:
    console = Console()
    for number, name in enumerate(pipeline.names(), start=1):
        plan = pipeline.plan(name, force=name in forced)
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
