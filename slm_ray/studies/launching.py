"""Starting a task: its command's arguments, a process for it or this one, and how it ended."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.base import flatten
from slm_ray.config.errors import UserError, first_line
from slm_ray.runtime.runfolder import CONFIG_FILE
from slm_ray.studies.points import Task, resolved_options, task_folder
from slm_ray.studies.stages import action_of, is_done, to_argv

LOGS_FOLDER = "logs"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
_ON_RAY = ("search", "logits", "pretrain", "proxies")
_ERROR_CHARACTERS = 600
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Setting:
    """How tasks are run, whatever they are."""

    run: str  # The sweep's folder
    folder: str  # The one that the sweep was given in, and that relative places of its tasks are below
    address: str | None  # The Ray that tasks join; None: they start their own, or use the one of this process
    local_ray: bool  # Whether that Ray is one that this sweep has started on this machine alone
    tracker: str  # Where tasks send their metrics
    threads: int | None  # CPU threads of each worker, where a task does not say; None: all
    group: str  # What runs of the sweep are grouped under in W&B


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    status: str  # ``done``, ``failed`` or ``stopped`` (early, by a scheduler)
    error: str | None  # Why it failed
    seconds: float  # What this attempt took


def arguments(task: Task, setting: Setting) -> list[str]:
    """The arguments of a task's command: to begin it, or to go on with it."""
    run = Path(setting.run)
    folder, options = task_folder(task, run), resolved_options(task, run)
    config = task.stage.config(options, out=str(folder))
    known = flatten(config)
    where: dict[str, Any] = {"tracker": setting.tracker}
    if task.stage.name in _ON_RAY or num_workers(task) > 1:
        where["address"] = setting.address
    if setting.threads is not None and known.get("threads", 1) is None:
        where["threads"] = setting.threads
    where = {name: value for name, value in where.items() if name in known and value is not None}
    if task.stage.resumes and (folder / CONFIG_FILE).is_file():
        return ["--resume", str(folder), *(f"--{name}={value}" for name, value in where.items())]
    if task.stage.resumes and folder.exists():
        shutil.rmtree(folder)  # killed before its options were written: nothing was done
    folder.parent.mkdir(parents=True, exist_ok=True)
    return [*action_of(task.stage, config), *to_argv(config.replace(**where))]


def num_workers(task: Task) -> int:
    """Workers that a task asks for; 1 where it does not say."""
    return int(task.options.get("workers") or 1)


def log_file(task: Task, run: Path) -> Path:
    """Where everything that a task prints goes."""
    place = run / LOGS_FOLDER / f"{task.name}.log"
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def end_of(task: Task, run: Path, status: int, log: str) -> tuple[str, str | None]:
    """A task's status and error from its command's exit status and what it printed."""
    if is_done(task.stage, task_folder(task, run)) and status == 0:
        return DONE, None
    if status < 0:
        return FAILED, f"its process was ended by signal {-status}" + (" (is the memory full?)" if status == -9 else "")
    said = list(re.finditer(r"^error: ", log, re.MULTILINE))
    if said:
        return FAILED, log[said[-1].end() :].strip()[:_ERROR_CHARACTERS]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return FAILED, f"it ended with status {status}: {lines[-1][:200] if lines else 'it said nothing'}"


class ChildTask:
    """A task that runs in a process of its own."""

    def __init__(self, task: Task, setting: Setting) -> None:
        self._task, self._run, self._began = task, Path(setting.run), time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._problem: str | None = None
        try:
            argv = arguments(task, setting)
        except UserError as error:
            self._problem = str(error)
            return
        self._log = log_file(task, self._run).open("ab")
        self._log_start = self._log.tell()
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "slm_ray.studies.child", task.stage.module, *argv],
            stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, env=_environment(setting),
            cwd=setting.folder,
        )  # fmt: skip

    def wait(self, seconds: float) -> Outcome | None:
        """How it ended; None if it is still running after so many seconds."""
        if self._process is None:
            return Outcome(FAILED, self._problem, 0.0)
        try:
            status = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        said = log_file(self._task, self._run).read_bytes()[self._log_start :].decode(errors="replace")
        return Outcome(*end_of(self._task, self._run, status, said), self._seconds())

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def stop(self) -> None:
        """End it now; what it finished stays."""
        if self._process is None or self._process.poll() is not None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment(setting: Setting) -> dict[str, str]:
    environment = {**os.environ, "WANDB_RUN_GROUP": setting.group}
    if setting.local_ray:
        # Ray's own switch for a node that is alone (see slm_ray.runtime): the address is localhost's for whoever joins.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return environment


def run_here(task: Task, setting: Setting) -> Outcome:
    """Run a task's command in this process, what it prints going to its log."""
    began, run = time.monotonic(), Path(setting.run)
    with log_file(task, run).open("a", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                status = importlib.import_module(task.stage.module).main(arguments(task, setting))
                problem = None if status == 0 else f"it ended with status {status}"
            except UserError as error:
                problem = str(error)
            except Exception as error:  # a stage that breaks is a failed point, and the others go on
                traceback.print_exc()
                problem = f"{type(error).__name__}: {first_line(error)}"
    if problem is None and not is_done(task.stage, task_folder(task, run)):
        problem = f"it left no {task.stage.result}"
    return Outcome(FAILED if problem else DONE, problem, round(time.monotonic() - began, 3))


def runs_alone(task: Task) -> bool:
    """Whether a task must have a process of its own: DeepSpeed takes only one process group in a process."""
    options = task.options
    is_local = task.stage.name == "pretrain" and options.get("launcher") == "local"
    return is_local and options.get("engine", "deepspeed") == "deepspeed"


def needs_ray(tasks: Sequence[Task]) -> bool:
    """Whether any task computes on Ray."""
    return any(
        (task.stage.name in _ON_RAY and task.options.get("launcher") != "local") or num_workers(task) > 1
        for task in tasks
    )
