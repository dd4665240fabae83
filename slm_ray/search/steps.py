"""The steps before the last search: a larger cut, trained with the given teacher's help, is the next one's teacher.

A step's folder ``steps/N`` in the run holds a search run, a pretraining run, and what came of it in the given teacher's
shape. Each is whole before the next begins and continues where it was killed, so a resumed run repeats nothing.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.options import build_config
from slm_ray.config.units import format_count
from slm_ray.models.loading import load_student
from slm_ray.models.padding import save_padded
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.run import CHECKPOINTS, PretrainRun
from slm_ray.records.files import read_json
from slm_ray.records.lineage import read_lineage
from slm_ray.records.subnet import SubnetSpec
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console
from slm_ray.runtime.runfolder import CONFIG_FILE, RunFolder
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import DTYPES
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.step_plan import StepPlan, step_plans, training_options

_SEARCH, _TRAINING, _TEACHER = "search", "training", "teacher"
_RESULT_FILE = "result.json"
_MAY_CHANGE = ("workers", "threads", "address", "tracker")  # of a step's options, at a resume


@dataclass(frozen=True)
class Step:
    """A finished step.

    Attributes:
        plan: Its number and size.
        config: The options of its search.
        teacher: What came of it, in the given teacher's shape.
        left: The units that it has left.
        record: What a result and a lineage say of it.
        spent: What it cost.
    """

    plan: StepPlan
    config: SearchConfig
    teacher: Teacher
    left: SubnetSpec
    record: dict[str, Any]
    spent: dict[str, Any]


Search = Callable[[SearchConfig, RunFolder, SearchInputs, Sequence[Step]], None]


def inputs_after(given: SearchInputs, steps: Sequence[Step]) -> SearchInputs:
    """What a search starts from after some steps: what came of the last one is its teacher."""
    unpaid = dataclasses.replace(given, written_tokens=0)
    if not steps:
        return unpaid
    return dataclasses.replace(unpaid, teacher=steps[-1].teacher, original=given.teacher, left=steps[-1].left)


def take_steps(
    config: SearchConfig, given: SearchInputs, run: Path, command: str, console: Console, search: Search
) -> list[Step]:
    """Take all steps before the last; what is done already is read.

    Args:
        config: The options of the run.
        given: What it starts from, with the teacher that was given.
        run: The run's folder.
        command: The command line, for the record.
        console: Where to say how far it is.
        search: Runs one search in a folder.

    Raises:
        UserError: A search or a training failed in a way that the user can fix; what was finished is kept.
    """
    steps: list[Step] = []
    for plan in step_plans(config, given.architecture):
        folder, own = plan.folder(run), plan.search_config(config)
        console.line(f"step {plan.number} of {config.steps}: search at {plan.budget}")
        inputs = dataclasses.replace(inputs_after(given, steps), budget=plan.budget, other=None)
        _search(own, folder / _SEARCH, command, inputs, steps, search)
        console.line(f"step {plan.number} of {config.steps}: training on {config.step_tokens} tokens")
        trained = _train(config, given.teacher, folder, command, console)
        steps.append(_finish(plan, own, given, folder, trained))
    return steps


def _open(path: Path, config: dict[str, Any]) -> tuple[RunFolder, dict[str, Any]]:
    """A step's run folder and its options: those it was started with, but for what may change."""
    if (path / CONFIG_FILE).is_file():
        folder = RunFolder.open_existing(path)
        saved = {name: value for name, value in folder.config().items() if name != "command"}
        return folder, saved | {name: config[name] for name in _MAY_CHANGE if name in config}
    shutil.rmtree(path, ignore_errors=True)  # it had hardly begun
    return RunFolder.create(path, config), {name: value for name, value in config.items() if name != "command"}


def _search(
    config: SearchConfig, path: Path, command: str, inputs: SearchInputs, before: Sequence[Step], search: Search
) -> None:
    if (path / _RESULT_FILE).is_file():
        return
    folder, options = _open(path, config.to_json() | {"command": command})
    try:
        search(build_config(SearchConfig, options, source=str(path / CONFIG_FILE)), folder, inputs, before)
    finally:
        folder.close()


def training_config(config: SearchConfig, teacher: Teacher, student: Path) -> PretrainConfig:
    """The options of the training after a step's search: full distillation from the teacher that was given.

    Args:
        config: The options of the run.
        teacher: The given teacher.
        student: The search's winner.
    """
    here = config.workers and not config.address
    threads: dict[str, Any] = {"threads": min(usable_cpus(), config.workers * config.threads)} if here else {}
    return PretrainConfig(
        student=str(student), teacher=teacher.name, data=config.data, text_field=config.text_field,
        sequence_length=config.sequence_length, seed=str(config.seed), distill="full",
        eval_tokens=config.held_out_tokens, address=config.address,
        tracker="jsonl" if config.tracker == "wandb" else config.tracker, **threads, **training_options(config),
    )  # fmt: skip


def _train(config: SearchConfig, teacher: Teacher, folder: Path, command: str, console: Console) -> dict[str, Any]:
    """The result of training a step's winner."""
    path = folder / _TRAINING
    if not (path / _RESULT_FILE).is_file():
        wanted = training_config(config, teacher, folder / _SEARCH / "winners" / "0")
        wanted.check()
        run, options = _open(path, wanted.to_json() | {"command": command})
        try:
            training = PretrainRun(build_config(PretrainConfig, options, source=str(path / CONFIG_FILE)), run, command)
            training.console.on_progress = console.on_progress
            training.execute()
        finally:
            run.close()
    return dict(read_json(path / _RESULT_FILE)["models"][0])


def _finish(plan: StepPlan, config: SearchConfig, given: SearchInputs, folder: Path, trained: dict[str, Any]) -> Step:
    """Put a trained winner into the given teacher's shape, and say what the step was."""
    found = read_json(folder / _SEARCH / _RESULT_FILE)
    winner = next(entry for entry in found["front"] if entry["trial"] == found["winners"][0]["trial"])
    spec = SubnetSpec.from_json(read_lineage(folder / _SEARCH / "winners" / "0")["spec"])
    place, training = folder / _TEACHER, folder / _TRAINING
    if not place.is_dir():
        save_padded(load_student(training / trained["model"], f"step {plan.number}"), given.teacher, spec, place)
    shutil.rmtree(training / trained["name"] / CHECKPOINTS, ignore_errors=True)  # several times the model's size
    teacher = load_teacher(str(place))
    for dtype in {DTYPES[given.precision], *([torch.float32] if given.reconstruction is not None else [])}:
        teacher.state_as(dtype)  # made here once, so that no two workers make it at the same time
    first, last = trained["evals"][0], trained["evals"][-1]
    record = {
        "step": plan.number, "folder": str(folder.relative_to(folder.parents[1])), "trial": winner["trial"],
        "digest": winner["digest"], "architecture": winner["architecture"], "cost": winner["cost"],
        "tokens": trained["tokens"], "loss_before": first["loss"], "loss_after": last["loss"],
        "teacher": teacher.digest,
    }  # fmt: skip
    return Step(plan, config, teacher, spec, record, _spent(plan, found["spent"], trained, winner["cost"]["flops"]))


def _spent(plan: StepPlan, search: dict[str, Any], trained: dict[str, Any], flops_per_token: float) -> dict[str, Any]:
    flops, evaluated = trained["flops"], sum(one["eval_tokens"] for one in trained["evals"])
    return {
        "step": plan.number,
        "search": {
            "seconds": round(sum(search["seconds"].values()), 2), "forward_tokens": search["forward_tokens"],
            "flops": search["flops"], "candidates": search["candidates"],
        },
        "training": {
            "seconds": round(trained["seconds"], 2), "tokens": trained["tokens"], "eval_tokens": evaluated,
            "flops": flops["own"] + flops["teacher"] + flops_per_token * evaluated,
        },
    }  # fmt: skip


def add_spent(spent: dict[str, Any], steps: Sequence[Step]) -> None:
    """Add what the steps before cost to what a search has: once by itself, and in the totals."""
    if not steps:
        return
    spent["steps"] = [step.spent for step in steps]
    for one in spent["steps"]:
        spent["flops"] += one["search"]["flops"] + one["training"]["flops"]
        training = one["training"]["tokens"] + one["training"]["eval_tokens"]
        spent["forward_tokens"] += one["search"]["forward_tokens"] + training


def describe_step(step: Step) -> str:
    """A finished step in a few words for a terminal."""
    record = step.record
    losses = " to ".join("?" if one is None else f"{one:.3f}" for one in (record["loss_before"], record["loss_after"]))
    return f"step {record['step']}: {format_count(record['cost']['params'])}, loss {losses}"
