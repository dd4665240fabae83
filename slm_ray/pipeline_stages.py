"""The pipeline's stages: what each is run with, what its result depends on, and what of it is there already."""

from __future__ import annotations

import hashlib
import importlib
import os
import shlex
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json, sha256_file
from slm_ray.config.options import defaults_of, given_flags, names_in, replaced, values_of
from slm_ray.evaluate.config import MAY_CHANGE as EVALUATE_MAY_CHANGE
from slm_ray.pipeline_options import Options
from slm_ray.pretrain.config import MAY_CHANGE as PRETRAIN_MAY_CHANGE
from slm_ray.records.files import read_json, write_json
from slm_ray.records.logits import work_folder
from slm_ray.runtime.runfolder import CONFIG_FILE
from slm_ray.search.command import MAY_CHANGE as SEARCH_MAY_CHANGE

STATE_FILE = "pipeline.json"
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
    """What is to be done about a stage.

    Attributes:
        action: ``run``, ``resume`` or ``skip``.
        reason: Why, in a few words.
        argv: Its command's arguments.
        aside: What lies where its output goes and has to be moved away first.
    """

    action: str
    reason: str
    argv: list[str]
    aside: tuple[Path, ...] = ()


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


def _model_digest(folder: Path) -> list[str]:
    files = [folder / CONFIG_FILE, *sorted(folder.glob("*.safetensors"))]
    return [sha256_file(file) for file in files if file.is_file()]


def to_argv(config: Any) -> list[str]:
    """The words that give a config."""
    return [word for flag in given_flags(config) for word in flag]


class Pipeline:
    """The stages of one folder."""

    def __init__(self, options: Options) -> None:
        """Read how far an earlier command came.

        Args:
            options: Every stage's options.
        """
        self.options, self.out = options, options.out
        self.state: dict[str, Any] = read_json(self.out / STATE_FILE) if (self.out / STATE_FILE).exists() else {}
        self.state.setdefault("stages", {})

    def names(self) -> tuple[str, ...]:
        """The stages that there are, in order."""
        return tuple(name for name in STAGES if name != "logits" or self.options.logits is not None)

    def command(self, name: str, argv: list[str]) -> str:
        """The command line of a stage, to be shown."""
        return shlex.join(["python", "-m", f"slm_ray.{name}", *argv])

    def plan(self, name: str, *, force: bool = False, renewed: Set[str] = frozenset()) -> Plan:
        """What is to be done about a stage, judged by what lies on the disk now.

        Args:
            name: The stage.
            force: Run it whatever is there.
            renewed: Stages that a dry run says would be run before it.
        """
        key, kept = self.key(name), self.state["stages"].get(name, {})
        there = tuple(path for path in self._places(name) if path.exists())
        if force:
            return Plan(RUN, "asked for with --from", self.argv(name), there)
        if kept.get("key") != key:
            reason = "its options or inputs have changed" if kept else "not done yet"
            return Plan(RUN, reason, self.argv(name), there)
        if kept and renewed & set(_NEEDS[name]):
            return Plan(RUN, "a stage that it reads is run", self.argv(name), there)
        if "output" in kept:
            if kept["output"] == self.output_digest(name):
                return Plan(SKIP, "done, and unchanged", self.argv(name))
            return Plan(RUN, "its output was changed or removed", self.argv(name), there)
        if name in ("search", "pretrain"):
            if not (self.out / name / CONFIG_FILE).exists():
                return Plan(RUN, "it had hardly begun", self.argv(name), there)
            return Plan(RESUME, "interrupted", self._resume_argv(name))
        return Plan(RESUME if there else RUN, "interrupted" if there else "not done yet", self.argv(name))

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
            config = replaced(config, student=",".join(map(str, self._winners())))
        argv = to_argv(replaced(config, model=()) if name == "evaluate" else config)
        if name == "evaluate":
            argv = [text for model in self.models() for text in ("--model", model)] + argv
        return argv

    def _resume_argv(self, name: str) -> list[str]:
        config = getattr(self.options, name)
        defaults = defaults_of(type(config))
        same = {field: default for field, default in defaults.items() if field not in _MAY_CHANGE[name]}
        return ["--resume", str(self.out / name), *to_argv(replaced(config, **same))]

    def _result(self, name: str) -> Mapping[str, Any] | None:
        path = self.out / name / "result.json"
        return read_json(path) if path.is_file() else None

    def _winners(self) -> list[Path]:
        """The search's winners, those expected while it has not found them."""
        result = self._result("search")
        if result is None:
            return [Path(path) for path in names_in(values_of(self.options.pretrain)["student"])]
        return [self.out / "search" / entry["folder"] for entry in result["winners"]]

    def models(self) -> tuple[str, ...]:
        """What is evaluated: the trained winner, its teacher, the winners before training, the other models, and more.

        The first is the one that the others are compared with.
        """
        result = self._result("pretrain")
        if result is None:
            trained = [str(self.out / "pretrain" / "NAME" / "model")]
        else:
            trained = [str(self.out / "pretrain" / model["model"]) for model in result["models"]]
        added = names_in(values_of(self.options.evaluate)["model"])
        return tuple(dict.fromkeys([trained[0], self.teacher, *map(str, self._winners()), *trained[1:], *added]))

    @property
    def teacher(self) -> str:
        """The teacher that pretraining distills from."""
        return str(values_of(self.options.pretrain)["teacher"] or values_of(self.options.search)["teacher"])

    def key(self, name: str) -> str:
        """The digest of all that a stage's output depends on."""
        config = getattr(self.options, name, None)
        values = values_of(config) if config is not None else {}
        left_out = {*_MAY_CHANGE.get(name, ()), *_SET_BY_STAGES}
        options = {key: value for key, value in values.items() if key not in left_out}
        named = {key: file_signature(Path(str(options[key])).expanduser()) for key in _PATHS
                 if options.get(key) and Path(str(options[key])).expanduser().exists()}  # fmt: skip
        before = {need: self.state["stages"].get(need) for need in _NEEDS[name] if need in self.names()}
        inputs = {need: [entry.get("key"), entry.get("output")] if entry else None for need, entry in before.items()}
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
        models: list[Any] = []
        if name == "search":
            models = [_model_digest(winner) for winner in self._winners()]
        if name == "pretrain":
            models = [_model_digest(folder / model["model"]) for model in (self._result(name) or {})["models"]]
        return digest_json([sha256_file(last), models])

    def run(self, name: str, plan: Plan) -> int:
        """Run a stage through its command's own main function, and keep that it is done.

        Args:
            name: The stage.
            plan: What to do.

        Returns:
            Its exit status.

        Raises:
            UserError: Something the user can fix; what was finished is kept.
        """
        began = time.monotonic()
        key = self.key(name)
        kept = self.state["stages"].get(name, {})
        before = kept.get("seconds", 0.0) if plan.action == RESUME else 0.0
        self._keep(name, {"key": key, "command": self.command(name, plan.argv), "seconds": before})
        try:
            status: int = importlib.import_module(_MODULES[name]).main(plan.argv)
        finally:
            self.state["stages"][name]["seconds"] = round(before + time.monotonic() - began, 3)
            self._write()
        if status == 0:
            finished = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            entry = self.state["stages"][name] | {"output": self.output_digest(name), "finished_at": finished}
            self._keep(name, entry)
        return status

    def _keep(self, name: str, entry: dict[str, Any]) -> None:
        self.state["stages"][name] = entry
        self._write()

    def _write(self) -> None:
        write_json(self.out / STATE_FILE, self.state)
