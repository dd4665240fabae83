"""lm-eval's tasks by name: suites, the folders that define a name, the single tasks behind it.

``TaskManager()`` reads 14,000 files, which takes ten seconds; looking for the names in them takes a fraction of one.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from slm_ray.config.errors import UserError

_DEFINITION = re.compile(rb"^[\"']?(?:task|group|tag)[\"']?[ \t]*:[ \t]*[\"']?([A-Za-z_][\w./+-]*)", re.MULTILINE)
_TAG_LIST = re.compile(rb"^[\"']?tag[\"']?[ \t]*:[ \t\r]*\n((?:[ \t]*-.*\n)+)", re.MULTILINE)
_TAG = re.compile(rb"-[ \t]*[\"']?([A-Za-z_][\w./+-]*)")
_NEAR = 3


# Tasks that are reported together: names of lm-eval's tasks or groups, with the examples before each question.
SUITES: Mapping[str, Mapping[str, int]] = {
    # Inheritune (arXiv 2404.08634): nine tasks zero-shot, MMLU with five examples.
    "inheritune": {
        "wsc273": 0, "piqa": 0, "boolq": 0, "winogrande": 0, "logiqa": 0, "truthfulqa_mc1": 0, "truthfulqa_mc2": 0,
        "mnli": 0, "qnli": 0, "wnli": 0, "mmlu": 5,
    },
    # Pythia (arXiv 2304.01373): the tasks of its tables, zero-shot; --shots 5 gives the other half of them.
    "pythia": {
        "lambada_openai": 0, "piqa": 0, "winogrande": 0, "wsc": 0, "arc_easy": 0, "arc_challenge": 0, "sciq": 0,
        "logiqa": 0,
    },
    # Tasks on which models of 100M parameters differ from chance and from one another.
    "small": {
        "arc_easy": 0, "arc_challenge": 0, "hellaswag": 0, "piqa": 0, "sciq": 0, "lambada_openai": 0, "blimp": 0,
    },
    # Common sense, grammar, inference, reading and knowledge, as far as a metric needs no download.
    "swahili": {
        "xcopa_sw": 0, "xstorycloze_sw": 0, "global_piqa_nonparallel_cloze_swh_latn": 0, "bhs_swahili": 0,
        "xnli_sw": 0, "afrixnli_native_direct_swa": 0, "belebele_swh_Latn": 0, "global_mmlu_sw": 0,
    },
}  # fmt: skip

_TITLES: Mapping[str, str] = {
    "wsc273": "WSC273", "wsc": "WSC", "piqa": "PIQA", "boolq": "BoolQ", "winogrande": "WinoGrande", "logiqa": "LogiQA",
    "truthfulqa_mc1": "TruthfulQA MC1", "truthfulqa_mc2": "TruthfulQA MC2", "mnli": "MNLI", "qnli": "QNLI",
    "wnli": "WNLI", "mmlu": "MMLU", "arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge", "hellaswag": "HellaSwag",
    "sciq": "SciQ", "lambada_openai": "LAMBADA", "blimp": "BLiMP", "xcopa_sw": "XCOPA sw",
    "xstorycloze_sw": "XStoryCloze sw", "global_piqa_nonparallel_cloze_swh_latn": "Global PIQA sw",
    "bhs_swahili": "BHS sw", "xnli_sw": "XNLI sw", "afrixnli_native_direct_swa": "AfriXNLI sw",
    "belebele_swh_Latn": "Belebele sw", "global_mmlu_sw": "Global MMLU sw", "openbookqa": "OpenBookQA",
}  # fmt: skip

# Answers of very different lengths: their accuracy is reported with the likelihood divided by the answer's length
# (HellaSwag's and ARC-Challenge's usual figure since the Open LLM Leaderboard; OpenBookQA's and PIQA's in OLMo's).
_LENGTH_NORMALISED = ("hellaswag*", "arc_challenge*", "piqa", "openbookqa", "global_piqa_*")
ACC, ACC_NORM = "acc", "acc_norm"


def title_of(name: str, alias: str | None) -> str:
    """What a task or group is called in tables."""
    return _TITLES.get(name) or alias or name


def main_metric(name: str, metrics: tuple[str, ...]) -> str:
    """The metric that stands for a task: ``acc_norm`` where that is usual, else ``acc``, else the first."""
    if ACC_NORM in metrics and any(fnmatchcase(name, pattern) for pattern in _LENGTH_NORMALISED):
        return ACC_NORM
    return ACC if ACC in metrics else metrics[0]


def lm_eval_version() -> str:
    """The version that is installed."""
    return importlib.metadata.version("lm_eval")


@functools.cache
def tasks_root() -> Path:
    """The folder of lm-eval's own tasks."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed: install slm_ray with its dependencies, or `pip install lm-eval`")
    return Path(spec.origin).parent / "tasks"


@functools.cache
def catalogue() -> Mapping[str, tuple[str, ...]]:
    """Every name that lm-eval knows, with the folders (relative to its tasks) that define it, in order."""
    found: dict[str, dict[str, None]] = {}
    root = tasks_root()
    for folder, folders, files in sorted(os.walk(root)):
        folders.sort()
        relative = Path(folder).relative_to(root).as_posix()
        for file in files:
            if "yaml" not in file:
                continue
            text = (Path(folder) / file).read_bytes()
            names = _DEFINITION.findall(text) + [
                tag for block in _TAG_LIST.findall(text) for tag in _TAG.findall(block)
            ]
            for name in names:
                found.setdefault(name.decode(), {})[relative] = None
    return {name: tuple(places) for name, places in found.items()}


def unknown_task(name: str) -> UserError:
    """The error for a name that is neither a suite nor lm-eval's, with the nearest ones."""
    close = difflib.get_close_matches(name, [*SUITES, *catalogue()], n=_NEAR, cutoff=0.6)
    meant = f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""
    return UserError(
        f"--tasks: there is no task '{name}': {meant}Suites are {', '.join(SUITES)}; "
        f"`lm_eval ls tasks` lists those of lm-eval {lm_eval_version()}"
    )


class Definition(NamedTuple):
    """What lm-eval knows of one name given to ``--tasks``."""

    folders: tuple[str, ...]  # The folders that define it, relative to lm-eval's tasks; none lies inside another
    entries: Mapping[str, Any]  # lm-eval's entries of these folders, by name
    tasks: tuple[str, ...]  # The single tasks behind it, each once, in order


def define(name: str, include: Path | None = None) -> Definition:
    """Read the folders that define a task, group or tag, and those of the members of its groups.

    Task files in the folder ``include`` go before lm-eval's of the same name.
    """
    found: set[str] = set()
    read, missing = set[str](), {name}
    while missing:
        read |= missing
        found |= {_common_folder(one) for one in missing & catalogue().keys()}
        folders = tuple(
            folder for folder in sorted(found, reverse=True)
            if not any(folder != other and Path(folder).is_relative_to(other) for other in found)
        )  # fmt: skip
        index = task_manager(folders, *([include] if include else [])).task_index
        tasks = tuple(dict.fromkeys(_members(index, name)))
        missing = ({task for task in tasks if task not in index} & catalogue().keys()) - read
    if name not in index:
        raise unknown_task(name)
    return Definition(folders, index, tasks)


def _members(index: Mapping[str, Any], member: Any) -> Iterator[str]:
    """The single tasks behind a name, or behind a member of a group as its file has it, as far as they are known."""
    if isinstance(member, dict):
        if member.get("group") not in index and isinstance(member.get("task"), list):  # a group inside its group
            for one in member["task"]:
                yield from _members(index, one)
            return
        member = str(member.get("group") or member.get("task"))
    entry = index.get(member)
    if entry is None or entry.kind.name not in ("GROUP", "TAG"):
        yield member
        return
    members = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    for one in members if isinstance(members, list) else ():
        yield from _members(index, one)


def _common_folder(name: str) -> str:
    """The folder that a task or group is defined in; of a tag, the one that holds all of its tasks."""
    places = catalogue()[name]
    return Path(os.path.commonpath(places)).as_posix() if len(places) > 1 else places[0]


def task_manager(folders: Iterable[str], *include: Path) -> Any:
    """lm-eval's ``TaskManager`` of some folders."""
    with quiet():
        from lm_eval.tasks import TaskManager

        paths = [tasks_root() / folder for folder in folders]
        return TaskManager(include_defaults=False, include_path=[*paths, *include])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and notes of lm-eval and datasets away; what goes wrong still comes as exceptions.

    Standard errors of metrics that are no means are bootstrapped in this process, not in forks of it: the numbers are
    the same, and a fork of a process with threads can hang.
    """
    before = logging.root.manager.disable
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
