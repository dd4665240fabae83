"""One planned task or group: how lm-eval loads it, and a sentence for whatever goes wrong with its documents."""

from __future__ import annotations

import contextlib
import os
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.evaluate.tasks.catalogue import quiet, task_manager
from slm_ray.evaluate.tasks.local_rows import write_task_files
from slm_ray.runtime.shared import local_copy

UNSAFE = "HF_ALLOW_CODE_EVAL"
"""The environment's switch that the evaluate library's code_eval asks for too."""
_READ_DOCUMENTS = {"build_all_requests", "process_results"}  # lm-eval's functions that do
# In the names of what datasets and huggingface_hub raise where the hub does not answer; they are of a dozen types.
_NOT_REACHED = ("Connection", "Offline", "NotFound", "Hub", "Timeout", "HTTP")


@dataclass(frozen=True)
class PlannedTask:
    """One name given to ``--tasks``: a task, or all tasks of a group or tag.

    Attributes:
        name: lm-eval's name.
        shots: Examples before each question; None for each task's own number.
        limit: First documents only; None for all.
        folders: The folders of lm-eval that define it.
        datasets: Task to the Hugging Face dataset that it reads.
        local: Task to the local files that its documents come from instead; empty where the hub has them.
        rows: The folder of local rows.
        settings: All that decides its result besides the model.
    """

    name: str
    shots: int | None
    limit: int | None
    folders: tuple[str, ...]
    datasets: Mapping[str, str]
    local: Mapping[str, str]
    rows: str | None
    settings: Mapping[str, Any]

    def source(self, task: str) -> str:
        """Where a task's documents come from, for the record."""
        return f"local: {self.local[task]}" if task in self.local else "hub"

    def load(self) -> dict[str, Any]:
        """lm-eval's tasks and groups, with examples and seeds set as its command line sets them.

        Returns:
            What ``TaskManager.load`` gives: ``tasks``, ``groups`` and ``group_map``.

        Raises:
            UserError: Documents cannot be had or do not fit, or a package is not installed.
        """
        from lm_eval.defaults import DEFAULT_OTHER_SEED

        with explained(self, "could not be prepared"), tempfile.TemporaryDirectory() as scratch, quiet():
            include = write_task_files(local_copy(Path(self.rows)), Path(scratch)) if self.rows else None
            loaded: dict[str, Any] = task_manager(self.folders, include).load([self.name])
            for task in loaded["tasks"].values():
                own = task.get_config("num_fewshot")
                if self.shots is not None and own != 0:
                    task.set_config("num_fewshot", self.shots)
                elif own is None:
                    task.set_config("num_fewshot", 0)
                task.set_fewshot_seed(DEFAULT_OTHER_SEED)
        return loaded


def allows_unsafe_code() -> bool:
    """Whether the user allows tasks that run what a model writes."""
    return os.environ.get(UNSAFE) == "1"


@contextlib.contextmanager
def explained(planned: PlannedTask, failed: str, *, documents_only: bool = False) -> Iterator[None]:
    """Turn what lm-eval and datasets raise into a sentence.

    Args:
        planned: The task.
        failed: What did not work, as the rest of a sentence about it.
        documents_only: A model runs inside: what does not go wrong with documents keeps its traceback.

    Raises:
        UserError: Something was raised inside.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except ImportError as error:
        package = error.name or first_line(error)
        lacks = f"needs the package '{package}', which is not installed"
        raise UserError(f"task '{planned.name}' {lacks}: install it, or leave the task out") from error
    except Exception as error:
        names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if documents_only and not names & _READ_DOCUMENTS:
            raise
        said = unfit(planned, planned.name, error) if planned.rows else _no_hub(planned, failed, error)
        raise UserError(said) from error


def unfit(planned: PlannedTask, task: str, error: Exception) -> str:
    """Why a task cannot read its local documents: what lm-eval raised, and what the documents have."""
    task = task if task in planned.local else next(iter(planned.local))
    said, file, dataset = f"{type(error).__name__}: {first_line(error)}", planned.local[task], planned.datasets[task]
    return (
        f"--task-data: task '{task}' does not find the layout it expects in {file} ({said}): it reads {dataset}, whose "
        "fields the documents must have; tasks.yaml can rename fields"
    )


def _no_hub(planned: PlannedTask, failed: str, error: Exception) -> str:
    """Why a task on the hub's data stopped."""
    said = f"{type(error).__name__}: {first_line(error)}"
    dataset = next(iter(planned.datasets.values()), "its own dataset")
    instead = "give its documents as local files with --task-data FOLDER (docs/tasks.md)"
    if "cripts are no longer supported" in said:
        program = f"reads {dataset}, which is a program that datasets no longer runs"
        return f"task '{planned.name}' {program}: {instead}"
    if "'NoneType' object is not callable" in said:
        return (
            f"task '{planned.name}' takes a metric from the hub, which could not be reached: go online, or leave the "
            "task out"
        )
    if isinstance(error, OSError) or any(word in said for word in _NOT_REACHED):
        absent = f"did not get {dataset} from the hub ({said})"
        return f"task '{planned.name}' {absent}: check the network, or {instead}"
    return f"task '{planned.name}' {failed} ({said}): see what it needs, or {instead}"
