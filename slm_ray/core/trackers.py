"""Where metrics go beside the records: nowhere, a JSON-lines file, or Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from slm_ray.core.records import RecordWriter

Say = Callable[[str], None]


class Tracker(Protocol):
    """Takes metrics and tables of a run. A tracker that fails says so once and never stops the run."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log scalars at a step."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

    def image(self, name: str, path: Path) -> None:
        """Log a picture file."""

    def finish(self) -> None:
        """Flush and close."""


class NoTracker:
    """Keeps nothing."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Do nothing."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing."""

    def image(self, name: str, path: Path) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class JsonlTracker(NoTracker):
    """Appends every logged step to ``metrics.jsonl`` in the run folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = RecordWriter(folder / "metrics.jsonl")

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append one line."""
        self._writer.append({"step": step, **metrics})

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()


def _wandb_mode() -> Any:
    """``WANDB_MODE`` if set; else online with a key at hand, offline without: never a prompt."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "online" if "wandb" in netrc.read_text(encoding="utf-8") else "offline"
    except (OSError, UnicodeDecodeError):
        return "offline"


class WandbTracker:
    """A run in W&B, in the group of its search; offline where there is no key, to be sent later with ``wandb sync``."""

    def __init__(
        self, folder: Path, group: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], say: Say
    ) -> None:
        """Start the run.

        Args:
            folder: The run folder; W&B's own files go below it.
            group: The runs it belongs with.
            job_type: ``search``, ``pretrain``, …
            tags: Words to find it by.
            config: The resolved options.
            say: Told what goes wrong, once.
        """
        self._say, self._run = say, None
        mode = _wandb_mode()
        try:
            import wandb

            settings = wandb.Settings(console="off", silent=True, init_timeout=60, login_timeout=10)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "slm_ray"), group=group, job_type=job_type, tags=list(tags),
                config=dict(config), name=folder.name, dir=str(folder), mode=mode, settings=settings,
                reinit="create_new",  # several models of one command are tracked at once
            )  # fmt: skip
            if mode == "offline":
                say(f"W&B is offline (no key): send this run later with `wandb sync {folder}/wandb/offline-run-*`")
        except Exception as error:  # whatever W&B does, the run goes on
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._say(f"W&B is not available ({type(error).__name__}: {str(error)[:120]}); the run goes on without it")

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            self._give_up(error)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log scalars at a step."""
        self._try(lambda run: run.log(dict(metrics), step=step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._try(send)

    def image(self, name: str, path: Path) -> None:
        """Log a picture file."""

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._try(send)

    def finish(self) -> None:
        """Flush and close."""
        self._try(lambda run: run.finish())


def make_tracker(
    kind: str, folder: Path, *, group: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], say: Say
) -> Tracker:
    """The tracker of a name: ``none``, ``jsonl`` or ``wandb``."""
    if kind == "wandb":
        return WandbTracker(folder, group, job_type, tags, config, say)
    return JsonlTracker(folder) if kind == "jsonl" else NoTracker()
