"""Where metrics go beside the records: nowhere, or to Weights & Biases."""

from __future__ import annotations

import contextlib
import netrc
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse

from slm_ray.config.errors import UserError, first_line
from slm_ray.config.redact import redact, redact_value
from slm_ray.records.base import Record, find_record, write_record
from slm_ray.records.metric_names import AXES, AXIS_OF
from slm_ray.runtime.environment import describe_environment

PIPELINE_FILE = "pipeline.json"
Say = Callable[[str], None]


class Tracker:
    """Takes metrics and tables of a run, and keeps nothing: the base of those that do.

    A tracker that fails says so once and never stops the run.

    Attributes:
        wants_earlier: What an earlier process of this run recorded is to be logged as well; it may be known already.
    """

    wants_earlier = False

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log scalars at a step; steps only grow."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

    def image(self, name: str, path: Path) -> None:
        """Log a picture file."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set what the run comes to."""

    def finish(self) -> None:
        """Flush and close; takes a bounded time."""


NoTracker = Tracker


def group_of(run: Path) -> str:
    """What the runs of one folder are grouped by: the pipeline it is a stage of, else its own name."""
    run = run.resolve()
    return run.parent.name if (run.parent / PIPELINE_FILE).is_file() else run.name


DEFAULT_SERVER = "https://api.wandb.ai"
INIT_SECONDS, FINISH_SECONDS = 20.0, 30.0
LEAST_FREE_BYTES = 64 << 20  # on a full disk W&B fills the terminal with tracebacks
_LONGEST_TAG, _LONGEST_NAME = 64, 128  # W&B refuses longer ones
_SETTINGS = {
    "console": "off", "silent": True, "disable_git": True, "save_code": False,
    "init_timeout": INIT_SECONDS, "login_timeout": 10, "finish_timeout": FINISH_SECONDS,
    # Command line, paths, user and host stay here: the config says what a reader needs, without secrets.
    "x_disable_meta": True, "host": "",
}  # fmt: skip


class WandbRun(Record):
    """The id of a folder's W&B run, drawn once, so that a resumed run is the same one there wherever the folder is."""

    FILE: ClassVar[str] = "wandb.json"
    id: str


def wandb_project() -> str:
    """The project that runs go to: ``WANDB_PROJECT``, or ``slm_ray``."""
    return os.environ.get("WANDB_PROJECT") or "slm_ray"


def has_key() -> bool:
    """Whether there is a key for the server, in the environment or where ``wandb login`` writes it; nobody is asked."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER).hostname or ""
    for name in [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
            if netrc.netrc(Path(name).expanduser()).authenticators(host):
                return True
    return False


def wandb_mode() -> str:
    """``WANDB_MODE`` if set; else online with a key at hand, offline without. Never one that would ask for a key."""
    mode = os.environ.get("WANDB_MODE") or "online"
    return "offline" if mode == "online" and not has_key() else mode


class WandbTracker(Tracker):
    """A run in W&B, offline where there is no key; W&B's own files go below the run folder."""

    def __init__(
        self, folder: Path, group: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], say: Say
    ) -> None:
        self._say, self._run, self._first_step, self._complained = say, None, 0, False
        try:
            if (free := shutil.disk_usage(folder).free) < LEAST_FREE_BYTES:
                raise UserError(f"the disk of {folder} has only {free >> 20} MiB free")
            if (known := find_record(folder, WandbRun)) is None:
                write_record(folder, known := WandbRun(id=uuid.uuid4().hex[:12]))
            mode = wandb_mode()
            # What an earlier process left on disk is sent before this one's.
            self.wants_earlier = mode == "online" or not list((folder / "wandb").glob(f"*run-*-{known.id}*"))
            self._kept = f"wandb sync {folder}/wandb/*run-*-{known.id}*"
            options: dict[str, Any] = {
                "project": wandb_project(), "id": known.id, "resume": "allow", "job_type": job_type,
                "group": (os.environ.get("WANDB_RUN_GROUP") or group)[:_LONGEST_NAME],
                "tags": list(dict.fromkeys(str(tag)[:_LONGEST_TAG] for tag in tags if tag)),
                "config": redact_value({**config, "environment": describe_environment().to_json()}),
                "name": folder.resolve().name[:_LONGEST_NAME], "dir": str(folder),
                "reinit": "create_new",  # several models of one command are tracked at once
            }  # fmt: skip
            self._run = self._start(folder, mode, options)
        except Exception as error:  # whatever W&B does, the run goes on
            self._complain(f"W&B is not available ({_reason(error)}); the run goes on without it")

    def _start(self, folder: Path, mode: Any, options: dict[str, Any]) -> Any:
        """The run, with the axes of its figures; one kept on disk where the server does not take it."""
        # What W&B stages of tables until they are sent, which offline is later: not in the user's home, which may be
        # another one then, or read-only.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve() / "wandb"))
        import wandb

        settings = wandb.Settings(**_SETTINGS)
        try:
            run = wandb.init(**options, mode=mode, settings=settings)
        except Exception as error:
            if mode != "online":
                raise
            # W&B still holds the id of the one that failed, so this one has another until it is sent.
            self._kept = f"wandb sync --id {options['id']} {folder}/wandb/offline-run-*"
            self._say(f"W&B cannot be reached ({_reason(error)}): this run is kept on disk; {self._send_later()}")
            run = wandb.init(**options | {"id": f"{options['id']}-kept"}, mode="offline", settings=settings)
        else:
            if mode == "online":
                self._first_step = int(run.starting_step)  # 0, or behind what the server has of a resumed run
            elif mode == "offline":
                self._say(f"W&B is offline (no key, or WANDB_MODE says so): {self._send_later()}")
        for axis in AXES:
            run.define_metric(axis, hidden=True)
        for pattern, axis in AXIS_OF.items():
            run.define_metric(pattern, step_metric=axis)
        return run

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log scalars at a step; one that the server has already is passed over."""
        if step >= self._first_step:
            self._do(lambda run: run.log(dict(metrics), step=step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; columns of numbers and words are allowed."""

        def send(run: Any) -> None:
            import wandb

            data = [[_cell(cell) for cell in row] for row in rows]
            run.log({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})

        self._do(send)

    def image(self, name: str, path: Path) -> None:
        """Log a picture file."""

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._do(send)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set what the run comes to."""
        self._do(lambda run: run.summary.update(redact_value(dict(values))))

    def finish(self) -> None:
        """Send the rest and close, in a bounded time; a run that ends in an exception counts as failed."""
        start = time.monotonic()
        self._do(lambda run: run.finish(exit_code=int(sys.exc_info()[0] is not None)))
        self._run = None
        if time.monotonic() - start >= FINISH_SECONDS:
            self._complain(f"W&B did not finish in time: what it has not sent is kept on disk; {self._send_later()}")

    def _do(self, action: Callable[[Any], object]) -> None:
        """Pass one thing on; what fails is left out."""
        try:
            if self._run is not None:
                action(self._run)
        except Exception as error:
            self._complain(f"W&B did not take something ({_reason(error)}); the run goes on")

    def _send_later(self) -> str:
        return f"send it later with `{self._kept}`"

    def _complain(self, sentence: str) -> None:
        if not self._complained:
            self._complained = True
            self._say(sentence)


def _reason(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {first_line(error, 120)}")


def _cell(value: Any) -> Any:
    """What a cell of a W&B table may hold."""
    return value if value is None or isinstance(value, (bool, int, float)) else redact(str(value))


def make_tracker(
    kind: str, folder: Path, *, group: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], say: Say
) -> Tracker:
    """The tracker of a name: ``none`` or ``wandb``."""
    if kind == "wandb":
        return WandbTracker(folder, group, job_type, tags, config, say)
    return NoTracker()
