"""One planned task or group: how lm-eval loads it, from the hub or from ``--task-data``, and what can go wrong."""

from __future__ import annotations

import contextlib
import os
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slm_ray.config.digest import sha256_file
from slm_ray.config.errors import UserError, first_line
from slm_ray.evaluate.tasks import Leaf, quiet, task_manager, tasks_root
from slm_ray.runtime.shared import local_copy

UNSAFE = "HF_ALLOW_CODE_EVAL"
"""The environment's switch that the evaluate library's code_eval reads too."""
_READ_DOCUMENTS = {"build_all_requests", "process_results"}  # lm-eval's functions that do
# In the names of what datasets and huggingface_hub raise where the hub does not answer; they are of a dozen types.
_NOT_REACHED = ("Connection", "Offline", "NotFound", "Hub", "Timeout", "HTTP")
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def splits_of(leaf: Leaf, shots: int) -> tuple[str, str | None]:
    """The splits that lm-eval reads (``Task.eval_docs`` and ``ConfigurableTask.fewshot_docs``).

    Args:
        leaf: The task.
        shots: Examples before each question.

    Returns:
        That of the documents it is evaluated on; that of the examples, None where none are read.

    Raises:
        UserError: It has no documents to evaluate on.
    """
    config = leaf.config
    evaluated = config.get("test_split") or config.get("validation_split")
    if not evaluated:
        raise UserError(f"task '{leaf.name}' has neither test nor validation documents, so lm-eval cannot evaluate it")
    few_shot = config.get("fewshot_config") or {}
    examples = few_shot.get("split") or config.get("fewshot_split")
    if not shots or (examples is None and few_shot.get("samples") is not None):
        return evaluated, None
    return evaluated, examples or config.get("training_split") or config.get("validation_split") or evaluated


@dataclass(frozen=True)
class LocalTask:
    """A task whose documents lie in the folder of ``--task-data``.

    Attributes:
        own: Its YAML file lies there too; otherwise it is lm-eval's.
        file: The YAML file, relative to the folder, or to lm-eval's tasks.
        data_files: What ``datasets`` reads, paths relative to the folder.
        changes: More keys of the task that differ from the YAML file's.
    """

    own: bool
    file: str
    data_files: Any
    changes: Mapping[str, Any]

    def names(self) -> list[str]:
        """The files that it reads."""
        return list(dict.fromkeys(_strings(self.data_files)))

    def digests(self, folder: Path) -> dict[str, str]:
        """The bytes that decide its result: file to SHA-256; globs and addresses stand for themselves."""
        return {name: sha256_file(folder / name) if (folder / name).is_file() else name for name in self.names()}

    def task_file(self, name: str, folder: Path) -> str:
        """lm-eval's YAML of the task, reading the files of a folder.

        Args:
            name: The task.
            folder: The task data on this machine.
        """
        file = (folder if self.own else tasks_root()) / self.file
        kwargs = {**self.changes.get("dataset_kwargs", {}), "data_files": _placed(self.data_files, folder)}
        return yaml.safe_dump({"include": str(file), "task": name, **self.changes, "dataset_kwargs": kwargs})


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(one)


def _placed(value: Any, folder: Path) -> Any:
    """``data_files`` with paths inside a folder made absolute."""
    if isinstance(value, dict):
        return {key: _placed(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [_placed(one, folder) for one in value]
    return str(folder / value) if "://" not in str(value) else value


def find_local(folder: Path, leaf: Leaf, shots: int) -> LocalTask | None:
    """How a task reads the folder of ``--task-data``; None where the folder has nothing of it.

    Args:
        folder: It may hold the task's YAML file, or its documents as ``TASK.jsonl`` (and ``TASK.SPLIT.jsonl``).
        leaf: The task.
        shots: Examples before each question.

    Raises:
        UserError: The examples' file is missing, or the task reads its data itself.
    """
    if leaf.file is not None and leaf.file.is_relative_to(folder):
        kwargs = dict(leaf.config.get("dataset_kwargs") or {})
        data_files = kwargs.pop("data_files", None)
        if data_files is None:
            return None
        return LocalTask(True, leaf.file.relative_to(folder).as_posix(), data_files, {"dataset_kwargs": kwargs})
    if not (folder / f"{leaf.name}.jsonl").is_file():
        return None
    if leaf.python or leaf.file is None:
        raise UserError(f"--task-data: task '{leaf.name}' is a program that fetches its data itself: leave it out")
    evaluated, examples = splits_of(leaf, shots)
    files = {evaluated: f"{leaf.name}.jsonl"}
    if examples is not None and examples != evaluated:
        files[examples] = f"{leaf.name}.{examples}.jsonl"
        if not (folder / files[examples]).is_file():
            raise UserError(
                f"--task-data {folder}: task '{leaf.name}' takes its examples from its '{examples}' documents, which "
                f"are missing: put them into {files[examples]}, or give --shots 0"
            )
    unread = [key for key in _SPLITS if leaf.config.get(key) not in files]
    changes = {"dataset_path": "json", "dataset_name": None, "custom_dataset": None, **dict.fromkeys(unread)}
    return LocalTask(False, leaf.file.relative_to(tasks_root()).as_posix(), files, changes)


@dataclass(frozen=True)
class PlannedTask:
    """One name given to ``--tasks``: a task, or all tasks of a group or tag.

    Attributes:
        name: lm-eval's name.
        shots: Examples before each question; None for each task's own number.
        limit: First documents only; None for all.
        folders: The folders of lm-eval that define it.
        datasets: Task to the dataset that it reads.
        local: Task to the local files that its documents come from; those of other tasks come from the hub.
        rows: The folder of ``--task-data``.
        settings: All that decides its result besides the model.
    """

    name: str
    shots: int | None
    limit: int | None
    folders: tuple[str, ...]
    datasets: Mapping[str, str]
    local: Mapping[str, LocalTask]
    rows: str | None
    settings: Mapping[str, Any]

    @property
    def is_local(self) -> bool:
        """Nothing of it comes from the hub."""
        return self.datasets.keys() == self.local.keys()

    def source(self, task: str) -> str:
        """Where a task's documents come from, for the record."""
        return f"local: {', '.join(self.local[task].names())}" if task in self.local else "hub"

    def load(self) -> dict[str, Any]:
        """lm-eval's tasks and groups, with examples and seeds set as its command line sets them.

        Returns:
            What ``TaskManager.load`` gives: ``tasks``, ``groups`` and ``group_map``.

        Raises:
            UserError: Documents cannot be had or do not fit, or a package is not installed.
        """
        from lm_eval.defaults import DEFAULT_OTHER_SEED

        with explained(self, "could not be prepared"), tempfile.TemporaryDirectory() as scratch, quiet():
            include = []
            if self.rows:
                folder = local_copy(Path(self.rows))
                include = [folder, Path(scratch)]
                for name, local in self.local.items():
                    Path(scratch, f"{name}.yaml").write_text(local.task_file(name, folder), encoding="utf-8")
            loaded: dict[str, Any] = task_manager(self.folders, *include).load([self.name])
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
        raise UserError(_unfit(planned, error) if planned.is_local else _no_hub(planned, failed, error)) from error


def _unfit(planned: PlannedTask, error: Exception) -> str:
    """Why a task cannot read its local documents: what lm-eval or datasets raised."""
    cause: BaseException = error
    while cause.__cause__ is not None:  # datasets says no more than that something went wrong
        cause = cause.__cause__
    task, local = next(iter(planned.local.items()))
    said, files = f"{type(cause).__name__}: {first_line(cause)}", ", ".join(local.names())
    return (
        f"--task-data: task '{task}' does not find the layout it expects in {files} ({said}): it reads "
        f"{planned.datasets[task]}, whose fields the documents must have"
    )


def _no_hub(planned: PlannedTask, failed: str, error: Exception) -> str:
    """Why a task on the hub's data stopped."""
    said = f"{type(error).__name__}: {first_line(error)}"
    dataset = next((what for name, what in planned.datasets.items() if name not in planned.local), "its own dataset")
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
