"""What a task will cost, before anything is spent: its stage's own forecast, on sizes that may come from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.distill.command import bytes_per_token
from slm_ray.distill.config import LogitsConfig
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.models.precision import measure_precision
from slm_ray.models.scratch import pad_vocabulary
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.forecast import PROCESS_BYTES, forecast, local_sizes, planned_models
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.runtime.forecast import Forecast, Work
from slm_ray.runtime.hardware import device_of
from slm_ray.search import estimates
from slm_ray.search.config import SearchConfig
from slm_ray.search.inputs import space_of
from slm_ray.studies.points import Task
from slm_ray.studies.proxies_config import ProxiesConfig


@dataclass(frozen=True)
class Planned:
    """A task before it is run."""

    forecast: Forecast  # What it will cost
    models: tuple[Architecture, ...] = ()  # Sizes of the models it leaves, as far as they are known
    teacher: Architecture | None = None  # Sizes of the teacher that a search prunes


Before = Mapping[str, Planned]
"""Step to plan of the tasks that a task needs."""


def _unknown(note: str) -> Planned:
    return Planned(Forecast(notes=(note,)))


def _step_of(name: str) -> str:
    """The step that a reference such as ``${search.model}`` or ``${search}/winners/0`` leads to."""
    return name[2:].partition("}")[0].partition(".")[0]


def _sizes(name: str, before: Before) -> Architecture | None:
    """The sizes of a model by its name, or by the reference to the step that makes it; None where unknown."""
    if not name.startswith("${"):
        return local_sizes(name)
    models = before[_step_of(name)].models
    number = name.rpartition("#")[2] if "#" in name else "0"
    return models[int(number)] if models else None


def _expanded(names: Sequence[str], before: Before) -> list[str]:
    """Names of single models: ``${search.models}`` becomes one reference for each."""
    found: list[str] = []
    for name in names:
        several = name.startswith("${") and ".models" in name
        found += [f"{name}#{number}" for number in range(len(before[_step_of(name)].models))] if several else [name]
    return found


def _search(config: SearchConfig, task: Task, before: Before, on_gpu: bool) -> Planned:
    teacher = _sizes(config.space.teacher, before)
    if teacher is None:
        return _unknown(f"the sizes of {config.space.teacher} are known once it is downloaded")
    space = space_of(config)
    sizes = estimates.search_sizes(config, space, teacher)
    precision = measure_precision(config.measure.precision, device_of(config.machine.device, config.machine.address))
    cost = estimates.forecast_search(config, space, sizes, precision, "bf16")
    return Planned(cost, (sizes.candidate,) * config.winners.winners, teacher)


def _logits(config: LogitsConfig, task: Task, before: Before, on_gpu: bool) -> Planned:
    teacher, length = _sizes(config.teacher, before), config.text.sequence_length
    sequences = None if config.text.shards else config.num_sequences(length, None)
    if teacher is None or sequences is None:
        return _unknown(f"what the capture of {config.teacher} costs is known once its tokens are prepared")
    tokens = sequences * length
    work = Work(name="capture", kind="capture", tokens=tokens, flops=float(flops_per_token(teacher, length)) * tokens)
    memory, disk = PROCESS_BYTES + 4 * num_params(teacher), bytes_per_token(config, teacher) * tokens
    return Planned(Forecast(work=(work,), memory_bytes=memory, disk_bytes=disk, workers=config.workers or 1))


def _pretrain(config: PretrainConfig, task: Task, before: Before, on_gpu: bool) -> Planned:
    students = _expanded(config.model.students, before)
    first = students[0] if students else ""
    known = dict.fromkeys([*students, config.model.teacher, config.model.tokenizer])
    sizes = {name: _sizes(name, before) for name in known if name and not name.startswith("train:")}
    teacher = config.model.teacher
    if teacher is None and first.startswith("${") and config.growth.grow_from is None:  # a winner: its search's teacher
        teacher, sizes["the search's teacher"] = "the search's teacher", before[_step_of(first)].teacher
    if any(sizes[name] is None for name in students):
        return _unknown(f"the sizes of {', '.join(config.model.students)} are known once they are downloaded")
    changes: dict[str, Any] = {"student": students} if students else {}
    changes |= {"teacher": teacher} if teacher else {}
    source = teacher if config.kind != "none" or config.model.tokenizer is None else config.model.tokenizer
    vocabulary = sizes.get(source) if source and source.startswith("${") else None  # that of a step's folder
    rows = None if vocabulary is None else vocabulary.structure.vocab_size
    config = config.replace(**changes)
    models = planned_models(config, lambda name: sizes[name] if name in sizes else local_sizes(name), rows=rows)
    cost = forecast(config, lambda name: sizes[name] if name in sizes else local_sizes(name), on_gpu=on_gpu,
                    models=models)  # fmt: skip
    return Planned(cost, tuple(model.sizes for model in models))


def _evaluate(config: EvaluateConfig, task: Task, before: Before, on_gpu: bool) -> Planned:
    found = [_sizes(name, before) for name in _expanded(config.model, before)]
    models = [sizes for sizes in found if sizes is not None]
    tokens = config.text.eval_tokens * len(config.text.domains)
    work = tuple(Work(name="text", kind="evaluation", tokens=tokens,
                      flops=float(flops_per_token(sizes, config.text.sequence_length)) * tokens)
                 for sizes in models)  # fmt: skip
    others = {
        "tasks": config.benchmarks.tasks, "generation": config.generation.prompts, "efficiency": config.efficiency,
        "peers": config.peers != ("none",) and not config.peers_are_auto,
    }  # fmt: skip
    left_out = [name for name, given in others.items() if given]
    memory = 4 * max(map(num_params, models), default=0) + PROCESS_BYTES
    notes = (f"FLOPs of {', '.join(left_out)} are not counted",) if left_out else ()
    return Planned(Forecast(work=work, memory_bytes=memory, notes=notes))


def _proxies(config: ProxiesConfig, task: Task, before: Before, on_gpu: bool) -> Planned:
    need = next(iter(task.needs.values()), None)
    if need is None:
        return _unknown("what training the candidates costs is printed by python -m slm_ray.proxies --dry-run")
    search: SearchConfig = need.stage.config(need.options, out="OUT")
    plan = before[need.step]
    if not plan.models or plan.teacher is None:
        return Planned(Forecast(notes=plan.forecast.notes))
    forward, whole = (float(flops_per_token(sizes, search.length)) for sizes in (plan.models[0], plan.teacher))
    staged = sum(name in ("perplexity", "kl") for name in config.proxies)
    tokens, measured = config.tokens * config.candidates, config.candidates * search.measure.calibration_tokens * staged
    work = [Work(name="candidates", kind="training", tokens=tokens, flops=3 * tokens * forward + measured * forward)]
    if config.distill == "full":
        work.append(Work(name="teacher", kind="teacher", flops=tokens * whole))
    params = num_params(plan.models[0])
    memory = 16 * params + 4 * num_params(plan.teacher) + PROCESS_BYTES
    return Planned(Forecast(work=tuple(work), memory_bytes=memory, disk_bytes=config.candidates * 4 * params))


def _tokenizer(config: Any, task: Task, before: Before, on_gpu: bool) -> Planned:
    """Extending a model costs hardly anything; what matters is the size of what it leaves."""
    if config.model is None:
        return Planned(Forecast(memory_bytes=PROCESS_BYTES))
    sizes = _sizes(config.model, before)
    if sizes is None:
        return _unknown(f"the sizes of {config.model} are known once it is downloaded")
    rows = pad_vocabulary(sizes.structure.vocab_size + config.add)
    extended = dataclasses.replace(sizes, structure=dataclasses.replace(sizes.structure, vocab_size=rows))
    size = 4 * num_params(extended)
    return Planned(Forecast(memory_bytes=2 * size + PROCESS_BYTES, disk_bytes=size), (extended,))


_FORECASTS: dict[str, Callable[[Any, Task, Before, bool], Planned]] = {
    "search": _search, "logits": _logits, "pretrain": _pretrain, "evaluate": _evaluate, "proxies": _proxies,
    "tokenizer": _tokenizer,
}  # fmt: skip


def plan_tasks(tasks: Sequence[Task], *, on_gpu: bool) -> dict[str, Planned]:
    """Every task's plan by its name; tasks come before those that need them."""
    found: dict[str, Planned] = {}
    for task in tasks:
        before = {step: found[need.name] for step, need in task.needs.items()}
        config = task.stage.config(task.options, out="OUT")
        try:
            found[task.name] = _FORECASTS[task.stage.name](config, task, before, on_gpu)
        except UserError as error:
            raise UserError(f"{task.step}: {error}") from error
    return found
