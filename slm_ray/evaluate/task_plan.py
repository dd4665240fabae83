"""The tasks of an evaluation: what ``--tasks`` names, how lm-eval loads it (from the hub or from ``--task-data``)."""

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
from slm_ray.evaluate.config import TasksConfig
from slm_ray.evaluate.tasks import SUITES, Definition, define, lm_eval_version, quiet, task_manager, tasks_root
from slm_ray.runtime.shared import local_copy

UNSAFE = "HF_ALLOW_CODE_EVAL"
"""The environment's switch that the evaluate library's code_eval reads too."""
_READ_DOCUMENTS = {"build_all_requests", "process_results"}  # lm-eval's functions that do
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def allows_unsafe_code() -> bool:
    """Whether the user allows tasks that run what a model writes."""
    return os.environ.get(UNSAFE) == "1"


def splits_of(name: str, config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The splits that lm-eval reads of a task: of the documents, and of the examples (None where its file lists them).

    They are chosen as by ``Task.eval_docs`` and ``ConfigurableTask.fewshot_docs``.
    """
    evaluated = config.get("test_split") or config.get("validation_split")
    if not evaluated:
        raise UserError(f"task '{name}' has neither test nor validation documents, so lm-eval cannot evaluate it")
    few_shot = config.get("fewshot_config") or {}
    examples = few_shot.get("split") or config.get("fewshot_split")
    if examples is None and few_shot.get("samples") is not None:
        return evaluated, None
    return evaluated, examples or config.get("training_split") or config.get("validation_split") or evaluated


@dataclass(frozen=True)
class LocalTask:
    """A task whose documents lie in the folder of ``--task-data``."""

    own: bool  # Its YAML file lies there too; otherwise it is lm-eval's
    file: str  # The YAML file, relative to the folder, or to lm-eval's tasks
    data_files: Any  # What ``datasets`` reads, paths relative to the folder
    changes: Mapping[str, Any]  # More keys of the task that differ from the YAML file's

    def names(self) -> list[str]:
        """The files that it reads."""
        found: list[str] = []
        _mapped(self.data_files, found.append)
        return list(dict.fromkeys(found))

    def digests(self, folder: Path) -> dict[str, str]:
        """The bytes that decide its result: file to SHA-256; globs and addresses stand for themselves."""
        return {name: sha256_file(folder / name) if (folder / name).is_file() else name for name in self.names()}

    def task_file(self, name: str, folder: Path) -> str:
        """lm-eval's YAML of the task, reading the files of the task data in a folder on this machine."""
        file = (folder if self.own else tasks_root()) / self.file
        data_files = _mapped(self.data_files, lambda path: path if "://" in path else str(folder / path))
        kwargs = {**self.changes.get("dataset_kwargs", {}), "data_files": data_files}
        return yaml.safe_dump({"include": str(file), "task": name, **self.changes, "dataset_kwargs": kwargs})


def _mapped(value: Any, change: Any) -> Any:
    """``data_files`` with every path changed."""
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    return [_mapped(one, change) for one in value] if isinstance(value, list) else change(str(value))


def _find_local(folder: Path, name: str, entry: Any, shots: int | None) -> LocalTask | None:
    """How a task reads the folder of ``--task-data``; None where the folder has nothing of it."""
    config = entry.cfg or {}
    if entry.yaml_path is not None and entry.yaml_path.is_relative_to(folder):
        kwargs = dict(config.get("dataset_kwargs") or {})
        data_files = kwargs.pop("data_files", None)
        file = entry.yaml_path.relative_to(folder).as_posix()
        return None if data_files is None else LocalTask(True, file, data_files, {"dataset_kwargs": kwargs})
    if not (folder / f"{name}.jsonl").is_file():
        return None
    if entry.kind.name == "PY_TASK":
        raise UserError(f"--task-data: task '{name}' is a program that fetches its data itself: leave it out")
    (evaluated, examples), own = splits_of(name, config), config.get("num_fewshot")
    files = {evaluated: f"{name}.jsonl"}
    wanted = 0 if own == 0 else shots if shots is not None else own
    if wanted and examples is not None and examples != evaluated:
        files[examples] = f"{name}.{examples}.jsonl"
        if not (folder / files[examples]).is_file():
            raise UserError(
                f"--task-data {folder}: task '{name}' takes its examples from its '{examples}' documents, which are "
                f"missing: put them into {files[examples]}, or give --shots 0"
            )
    unread = [key for key in _SPLITS if config.get(key) not in files]
    changes = {"dataset_path": "json", "dataset_name": None, "custom_dataset": None, **dict.fromkeys(unread)}
    return LocalTask(False, entry.yaml_path.relative_to(tasks_root()).as_posix(), files, changes)


@dataclass(frozen=True)
class PlannedTask:
    """One name given to ``--tasks``: a task, or all tasks of a group or tag."""

    name: str
    shots: int | None  # Examples before each question; None for each task's own number
    limit: int | None
    folders: tuple[str, ...]
    datasets: Mapping[str, str]  # Task to the dataset that it reads
    # Task to the local files that its documents come from; those of other tasks come from the hub
    local: Mapping[str, LocalTask]
    rows: str | None  # The folder of ``--task-data``
    settings: Mapping[str, Any]  # All that decides its result besides the model

    @property
    def is_local(self) -> bool:
        """Nothing of it comes from the hub."""
        return self.datasets.keys() == self.local.keys()

    def source(self, task: str) -> str:
        """Where a task's documents come from, for the record."""
        return f"local: {', '.join(self.local[task].names())}" if task in self.local else "hub"

    def load(self) -> dict[str, Any]:
        """lm-eval's ``tasks`` and ``groups``, with examples and seeds set as its command line sets them."""
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


def plan_tasks(config: TasksConfig) -> tuple[tuple[PlannedTask, ...], dict[str, tuple[str, ...]]]:
    """The tasks behind names, and the suites among the names; local data are read once, to see that they fit.

    A suite goes before a group of lm-eval's of the same name. Without ``shots`` a suite's, or a task's own number is
    taken; tasks whose file says 0 keep 0.
    """
    wanted: dict[str, int | None] = {}
    for name in config.tasks:
        for task, shots in SUITES[name].items() if name in SUITES else [(name, None)]:
            wanted[task] = shots if wanted.get(task) is None else wanted[task]
    folder = Path(config.task_data).expanduser().resolve() if config.task_data else None
    planned = []
    for name, shots in wanted.items():
        shots = config.shots if config.shots is not None else shots
        planned.append(_planned(name, define(name, folder), shots, config.limit, folder))
    if folder and not any(task.local for task in planned):
        first = next(iter(planned[0].datasets))
        raise UserError(
            f"--task-data {folder} has nothing for these tasks: put the documents of '{first}' into {first}.jsonl, or "
            "a task file of lm-eval's there (docs/tasks.md)"
        )
    for one in planned:
        if one.is_local:
            for task_name, task in one.load()["tasks"].items():
                _check_fields(task_name, task, one)
    return tuple(planned), {name: tuple(SUITES[name]) for name in config.tasks if name in SUITES}


def _planned(
    name: str, definition: Definition, shots: int | None, limit: int | None, folder: Path | None
) -> PlannedTask:
    datasets, local = {}, {}
    for task in definition.tasks:
        entry = definition.entries.get(task)
        config = (entry.cfg if entry is not None else None) or {}
        path, part = config.get("dataset_path"), config.get("dataset_name")
        datasets[task] = f"the dataset {path}" + (f" ({part})" if part else "") if path else "its own dataset"
        if config.get("unsafe_code") and not allows_unsafe_code():
            raise UserError(
                f"task '{task}' runs programs that the model writes: set {UNSAFE}=1 to allow that, or leave it out"
            )
        if config.get("doc_to_image") or config.get("doc_to_audio"):
            raise UserError(f"task '{task}' needs a model that sees or hears, and these read text only: leave it out")
        if folder and entry is not None and (found := _find_local(folder, task, entry, shots)):
            local[task] = found
    # lm-eval's own files are those of its version; a folder's may change.
    own = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".py")) if folder else []
    settings = {
        "lm_eval": lm_eval_version(), "task": name, "code": {path.name: sha256_file(path) for path in own},
        "shots": shots, "limit": limit,
        "data": {task: one.digests(folder) for task, one in local.items()} if folder and local else "hub",
    }  # fmt: skip
    rows = str(folder) if folder else None
    return PlannedTask(name, shots, limit, definition.folders, datasets, local, rows, settings)


def _check_fields(name: str, task: Any, planned: PlannedTask) -> None:
    """Refuse a row without a field of the prompt: lm-eval would write ``None`` there."""
    templates = " ".join(str(task.get_config(key)) for key in ("doc_to_text", "doc_to_target", "doc_to_choice"))
    table = task.eval_docs.data
    for field in table.column_names:
        nulls = table.column(field).is_null().to_pylist()
        if field in templates and any(nulls) and not all(nulls):
            where = f"row {nulls.index(True) + 1} of {planned.local[name].names()[0]} has nothing in it"
            raise UserError(f"--task-data: task '{name}' needs the field '{field}', and {where}")


@contextlib.contextmanager
def explained(planned: PlannedTask, failed: str, *, documents_only: bool = False) -> Iterator[None]:
    """Turn what lm-eval and datasets raise into a sentence; ``failed`` says what did not work.

    With ``documents_only`` a model runs inside: what does not go wrong with documents keeps its traceback.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if documents_only and not isinstance(error, ImportError) and not names & _READ_DOCUMENTS:
            raise
        cause: BaseException = error
        while planned.is_local and cause.__cause__ is not None:  # datasets says no more than that something went wrong
            cause = cause.__cause__
        said = f"{type(cause).__name__}: {first_line(cause)}"
        if isinstance(error, ImportError):
            lacks = f"needs the package '{error.name or first_line(error)}', which is not installed"
            raise UserError(f"task '{planned.name}' {lacks}: install it, or leave the task out") from error
        if planned.is_local:
            task, local = next(iter(planned.local.items()))
            raise UserError(
                f"--task-data: task '{task}' does not find the layout it expects in {', '.join(local.names())} "
                f"({said}): it reads {planned.datasets[task]}, whose fields the documents must have"
            ) from error
        dataset = next(what for name, what in planned.datasets.items() if name not in planned.local)
        raise UserError(
            f"task '{planned.name}' {failed} with {dataset} ({said}): check the network, or give its documents as "
            "local files with --task-data FOLDER (docs/tasks.md)"
        ) from error
