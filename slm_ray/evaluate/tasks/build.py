"""lm-eval's Task object of a planned task, on local data or the hub's, and one sentence where that fails."""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.evaluate.tasks.expand import Leaf
from slm_ray.evaluate.tasks.fields import expected_fields
from slm_ray.evaluate.tasks.harness import build, few_shot_seed, quiet, read_config, with_functions
from slm_ray.evaluate.tasks.layout import Splits, keep_splits
from slm_ray.evaluate.tasks.local_rows import LocalSplit, local_dataset

_UNSAFE = "HF_ALLOW_CODE_EVAL"  # the same switch that the evaluate library's code_eval asks for
GENERATE = "generate_until"
_READ_DOCUMENTS = {"build_all_requests", "process_results"}  # lm-eval's functions that do
# In the names of what datasets and huggingface_hub raise where the hub does not answer; they are of a dozen types.
_NOT_REACHED = ("Connection", "Offline", "NotFound", "Hub", "Timeout", "HTTP")


@dataclass(frozen=True)
class PlannedTask:
    """A task as it will be run.

    Attributes:
        leaf: Which one.
        shots: Examples before each question.
        limit: First documents only; None for all.
        data: Its local documents; empty where the hub has them.
        settings: All that decides its result besides the model.
    """

    leaf: Leaf
    shots: int
    limit: int | None
    data: tuple[LocalSplit, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """lm-eval's name."""
        return self.leaf.name

    def to_json(self) -> dict[str, Any]:
        """For a plan."""
        data = [split.to_json() for split in self.data]
        return {
            "leaf": asdict(self.leaf), "shots": self.shots, "limit": self.limit, "data": data,
            "settings": dict(self.settings),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PlannedTask:
        """The inverse of :meth:`to_json`."""
        data = tuple(LocalSplit.from_json(split) for split in value["data"])
        return cls(Leaf(**value["leaf"]), value["shots"], value["limit"], data, value["settings"])

    @property
    def source(self) -> str:
        """Where its documents come from, for the record."""
        return f"local: {', '.join(dict.fromkeys(one.shown for one in self.data))}" if self.data else "hub"


def read_leaf(leaf: Leaf, *, functions: bool) -> dict[str, Any]:
    """A task's config with what its group changes in it.

    Args:
        leaf: The task.
        functions: Import the functions that it names.
    """
    config = read_config(leaf.file, functions=functions) if leaf.file else {}
    return {**config, **(with_functions(leaf.overrides) if functions else leaf.overrides), "task": leaf.name}


def allows_unsafe_code() -> bool:
    """Whether the user has asked for tasks that run what a model writes."""
    return os.environ.get(_UNSAFE) == "1"


def refuse_unsafe(name: str, config: Mapping[str, Any]) -> None:
    """Stop at a task that runs the programs which a model writes.

    Raises:
        UserError: It does, and the user has not asked for that.
    """
    if config.get("unsafe_code") and not allows_unsafe_code():
        raise UserError(
            f"task '{name}' runs programs that the model writes: set {_UNSAFE}=1 to allow that, or leave it out"
        )
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError(f"task '{name}' needs a model that sees or hears, and these read text only: leave it out")


def build_task(planned: PlannedTask) -> Any:
    """The Task object, with its examples and seeds set as lm-eval's command line sets them.

    Args:
        planned: The task.

    Raises:
        UserError: Its data cannot be had or do not fit it, or it needs a package that is not installed.
    """
    name = planned.name
    with explained(planned, "could not be prepared"), quiet():
        config = read_leaf(planned.leaf, functions=True)
        if planned.data:
            keep_splits(config, Splits.of(name, config, planned.shots))
            config["custom_dataset"] = functools.partial(local_dataset, splits=planned.data)
            config["dataset_kwargs"] = None
        task = build(config)
        task.set_config("num_fewshot", planned.shots)
        task.set_fewshot_seed(few_shot_seed())
    metrics = getattr(task, "_metric_fn_list", {})
    absent = [metric for metric, function in metrics.items() if function is None]
    if absent and task.OUTPUT_TYPE == GENERATE and not callable(task.config.process_results):
        raise UserError(
            f"task '{name}' takes its metric '{absent[0]}' from the hub, which could not be reached: go online, or "
            "leave the task out"
        )
    return task


@contextlib.contextmanager
def explained(planned: PlannedTask, failed: str, *, documents_only: bool = False) -> Iterator[None]:
    """Turn what lm-eval and datasets raise into a sentence.

    Args:
        planned: The task in hand.
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
        said = f"--task-data: {_unfit(planned, error)}" if planned.data else _no_hub(planned, failed, error)
        raise UserError(said) from error


def _unfit(planned: PlannedTask, error: Exception) -> str:
    one = planned.data[0]
    row, reads = one.rows()[0], expected_fields(read_leaf(planned.leaf, functions=True))
    missing = [repr(name) for name in reads if name not in row]
    said = f"{type(error).__name__}: {first_line(error)}"
    lacks = f"the field {', '.join(missing)}" if missing else f"the layout it expects ({said})"
    expected = f"it reads {', '.join(reads)}, as in {_dataset(planned)}" if reads else f"it reads {_dataset(planned)}"
    has = ", ".join(f"{field} ({_kind(value)})" for field, value in row.items())
    return (
        f"task '{planned.name}' does not find {lacks} in {one.shown}: {expected}, and the first document has {has}; "
        f"tasks.yaml can rename fields"
    )


def _kind(value: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list", dict: "object"}
    if isinstance(value, dict):
        return f"object of {', '.join(value)}"
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _dataset(planned: PlannedTask) -> str:
    config = planned.settings["config"]
    path, name = config.get("dataset_path"), config.get("dataset_name")
    return (f"the dataset {path}" + (f" ({name})" if name else "")) if path else "its own dataset"


def _no_hub(planned: PlannedTask, failed: str, error: Exception) -> str:
    """Why a task on the hub's data stopped."""
    said = f"{type(error).__name__}: {first_line(error)}"
    files = "give its documents as local files with --task-data FOLDER (docs/tasks.md)"
    instead = "leave it out" if planned.leaf.python else files  # a program fetches its data itself
    if "cripts are no longer supported" in said:
        program = f"reads {_dataset(planned)}, which is a program that datasets no longer runs"
        return f"task '{planned.name}' {program}: {instead}"
    if isinstance(error, OSError) or any(word in said for word in _NOT_REACHED):
        absent = f"did not get {_dataset(planned)} from the hub ({said})"
        return f"task '{planned.name}' {absent}: check the network, or {instead}"
    return f"task '{planned.name}' {failed} ({said}): see what it needs, or {instead}"
