"""What a task will cost, before anything is spent: tokens, FLOPs, memory and disk, from sizes alone.

FLOPs are closed forms of the sizes (matrix multiplications; three passes of a trained model, one of its teacher), a
search's and a capture's counted in. Evaluations during training are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.distill.command import bytes_per_token
from slm_ray.distill.config import LogitsConfig
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.models.precision import measure_precision
from slm_ray.models.scratch import pad_vocabulary
from slm_ray.models.starts import first_layers_like
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.forecast import PROCESS_BYTES, first_layers, stage_depths, training_bytes, training_flops
from slm_ray.pretrain.scratch import ScratchModel, known_vocabulary, plan_scratch
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.records.lineage import read_lineage
from slm_ray.runtime.hardware import device_of
from slm_ray.search import estimates
from slm_ray.search.config import SearchConfig
from slm_ray.search.inputs import space_of
from slm_ray.studies.points import Task
from slm_ray.studies.proxies_config import ProxiesConfig
from slm_ray.studies.published import find_architecture, published_architecture

_CHECKPOINT_BYTES = 12  # of a parameter: weights and two moments, fp32


@dataclass(frozen=True)
class Cost:
    """What one task costs.

    Attributes:
        tokens: Tokens that models are trained on, or measured or captured on.
        own_flops: Training, and measuring, of the task's own models.
        teacher_flops: The teacher in the loop.
        search_flops: A search's.
        capture_flops: A capture's.
        memory_bytes: Of the largest worker; an estimate.
        disk_bytes: What it leaves.
        workers: Devices that share the work.
        models: Sizes of the models it leaves, as far as they are known.
        teacher: Sizes of the teacher that a search cuts them from.
        note: What is not in it, or not known.
    """

    tokens: float = 0.0
    own_flops: float = 0.0
    teacher_flops: float = 0.0
    search_flops: float = 0.0
    capture_flops: float = 0.0
    memory_bytes: float = 0.0
    disk_bytes: float = 0.0
    workers: int = 1
    models: tuple[Architecture, ...] = ()
    teacher: Architecture | None = None
    note: str = ""

    @property
    def flops(self) -> float:
        """All of them."""
        return self.own_flops + self.teacher_flops + self.search_flops + self.capture_flops


def total(costs: Sequence[Cost]) -> Cost:
    """Costs added up; memory is that of the largest."""
    sums = {name: sum(getattr(cost, name) for cost in costs) for name in
            ("tokens", "own_flops", "teacher_flops", "search_flops", "capture_flops", "disk_bytes")}  # fmt: skip
    notes = "; ".join(dict.fromkeys(cost.note for cost in costs if cost.note))
    largest = max((cost.memory_bytes for cost in costs), default=0.0)
    return Cost(**sums, memory_bytes=largest, workers=max((cost.workers for cost in costs), default=1), note=notes)


def cost_of(task: Task, before: Mapping[str, Cost], *, on_gpu: bool) -> Cost:
    """What a task costs.

    Args:
        task: The task.
        before: Step to cost of the tasks that it needs.
        on_gpu: Whether it is to run on GPUs, which have no processes' memory to share but whole batches to hold.

    Raises:
        UserError: A model that it names does not exist.
    """
    config = task.stage.config(task.options, out="OUT")
    return _COSTS[task.stage.name](config, task, before, on_gpu)


def _architecture(name: str | None, before: Mapping[str, Cost]) -> Architecture | None:
    """The sizes of a model by its name, or by the reference to the step that makes it."""
    if name is None:
        return None
    if name.startswith("${"):
        step = name[2:].partition("}")[0].partition(".")[0]
        models = before[step].models
        return models[0] if models else None
    return find_architecture(name)


def _models(names: str, before: Mapping[str, Cost]) -> list[Architecture]:
    found: list[Architecture] = []
    for name in names.split(","):
        if name.strip().startswith("${") and ".models" in name:
            found += before[name.strip()[2:].partition(".")[0]].models
        elif (known := _architecture(name.strip(), before)) is not None:
            found.append(known)
    return found


def _search(config: SearchConfig, task: Task, before: Mapping[str, Cost], on_gpu: bool) -> Cost:
    teacher = _architecture(config.space.teacher, before)
    if teacher is None:
        return Cost(note=f"the sizes of {config.space.teacher} are known once it is downloaded")
    space = space_of(config)
    sizes = estimates.search_sizes(config, space, teacher)
    precision = measure_precision(config.measure.precision, device_of(config.machine.device, config.machine.address))
    found = estimates.forecast_search(config, space, sizes, precision, "bf16")
    return Cost(
        tokens=found.tokens, search_flops=found.flops, memory_bytes=found.memory_bytes, disk_bytes=found.disk_bytes,
        models=(sizes.candidate,) * config.winners.winners, teacher=teacher,
    )  # fmt: skip


def _logits(config: LogitsConfig, task: Task, before: Mapping[str, Cost], on_gpu: bool) -> Cost:
    teacher = _architecture(config.teacher, before)
    tokens = config.num_tokens
    if teacher is None or tokens is None or config.text.shards:
        return Cost(note=f"what the capture of {config.teacher} costs is known once its tokens are prepared")
    length = config.text.sequence_length
    return Cost(
        tokens=tokens, capture_flops=float(flops_per_token(teacher, length)) * tokens,
        disk_bytes=bytes_per_token(config, teacher) * tokens, memory_bytes=PROCESS_BYTES + 4 * num_params(teacher),
        workers=config.workers or 1,
    )  # fmt: skip


def _teacher(config: PretrainConfig, before: Mapping[str, Cost]) -> Architecture | None:
    if config.model.teacher is not None:
        return _architecture(config.model.teacher, before)
    student = (config.model.students or ("",))[0]
    if config.growth.grow_from is not None:
        return _architecture(student, before)
    if student.startswith("${"):  # a winner: its search's teacher
        return before[student[2:].partition("}")[0].partition(".")[0]].teacher
    return find_architecture(name) if (name := read_lineage(student).get("teacher", {}).get("name")) else None


def scratch_models(
    config: PretrainConfig, teacher: Architecture | None, before: Mapping[str, Cost]
) -> tuple[ScratchModel, ...]:
    """The models from nothing, with the vocabulary of a published model where the hub has it.

    Raises:
        UserError: Its size cannot be had.
    """
    source = config.model.tokenizer or ""
    published = published_architecture(source or config.model.teacher or "")
    if config.kind != "none" and teacher is not None:
        rows: int | None = teacher.structure.vocab_size
    elif source.startswith("${"):  # the tokenizer of a step's folder
        rows = next(sizes.structure.vocab_size for sizes in before[source[2:].partition("}")[0]].models)
    elif published is not None:
        rows = pad_vocabulary(published.structure.vocab_size)
    else:
        rows = known_vocabulary(config)
    if rows is None:
        raise UserError(f"the vocabulary of {source or config.model.teacher} is known once it is downloaded")
    return plan_scratch(config, rows)


def trained_models(config: PretrainConfig, before: Mapping[str, Cost]) -> list[tuple[Architecture, PretrainConfig]]:
    """Every model that a pretraining trains, with its options (a scratch model's batch follows from its size)."""
    teacher = _teacher(config, before)
    if config.model.scratch:
        return [(model.architecture, model.config(config)) for model in scratch_models(config, teacher, before)
                for _ in config.batch.seed]  # fmt: skip
    if config.growth.grow_from is not None:
        if teacher is None:
            return []
        source = _architecture(config.model.students[0], before) or teacher
        depths = stage_depths(source.num_hidden_layers, config.growth.grow_from, config.growth.grow_by)
        return [(first_layers(source, layers).architecture_in(source), config) for layers in depths]
    found = []
    for student in _models(",".join(config.model.students), before):
        for start in config.model.starts:
            sizes = student
            if start == "first-n" and teacher is not None:
                sizes = first_layers_like(student, teacher).architecture_in(teacher)
            found += [(sizes, config)] * len(config.batch.seed)
    return found


def _pretrain(config: PretrainConfig, task: Task, before: Mapping[str, Cost], on_gpu: bool) -> Cost:
    models = trained_models(config, before)
    if not models:
        names = ", ".join(config.model.students)
        return Cost(note=f"the sizes of {names} are known once it is downloaded", workers=config.run.workers)
    teacher = _teacher(config, before) if config.kind == "full" else None
    own = teachers = tokens = 0.0
    for sizes, options in models:
        count, length = options.num_tokens, config.data.sequence_length
        own += training_flops(float(flops_per_token(sizes, length)) * count, options)
        teachers += float(flops_per_token(teacher, length)) * count if teacher else 0.0
        tokens += count
    memory = max(training_bytes(sizes, options, teacher, on_gpu=on_gpu) for sizes, options in models)
    params = [num_params(sizes) for sizes, _ in models]
    missing = config.kind == "full" and teacher is None
    return Cost(
        tokens=tokens, own_flops=own, teacher_flops=teachers, memory_bytes=memory,
        disk_bytes=_CHECKPOINT_BYTES * (config.checkpoint.keep_last + 1) * sum(params) + 4 * sum(params),
        workers=config.run.workers, models=tuple(sizes for sizes, _ in models),
        note="the teacher's sizes are not known, its FLOPs are left out" if missing else
             "growth may end before its last stage" if config.growth.grow_from is not None else "",
    )  # fmt: skip


def _evaluate(config: EvaluateConfig, task: Task, before: Mapping[str, Cost], on_gpu: bool) -> Cost:
    models = _models(",".join(config.model), before)
    tokens = config.text.eval_tokens * len(config.text.domains)
    flops = sum(float(flops_per_token(model, config.text.sequence_length)) * tokens for model in models)
    others = {
        "tasks": config.benchmarks.tasks, "generation": config.generation.prompts, "efficiency": config.efficiency,
        "peers": config.peers != ("none",) and not config.peers_are_auto,
    }  # fmt: skip
    left_out = [name for name, given in others.items() if given]
    largest = max(map(num_params, models), default=0)
    note = f"FLOPs of {', '.join(left_out)} are not counted" if left_out else ""
    return Cost(tokens=tokens * len(models), own_flops=flops, memory_bytes=4 * largest + PROCESS_BYTES, note=note)


def _proxies(config: ProxiesConfig, task: Task, before: Mapping[str, Cost], on_gpu: bool) -> Cost:
    need = next(iter(task.needs.values()), None)
    if need is None:
        return Cost(note="what training the candidates costs is printed by python -m slm_ray.proxies --dry-run")
    search: SearchConfig = need.stage.config(need.options, out="OUT")
    cost, teacher = before[need.step], before[need.step].teacher
    if not cost.models or teacher is None:
        return Cost(note=cost.note)
    tokens = config.tokens * config.candidates
    forward = float(flops_per_token(cost.models[0], search.length))
    whole = float(flops_per_token(teacher, search.length)) if config.distill == "full" else 0.0
    staged = len([name for name in config.proxies if name in ("perplexity", "kl")])
    measured = config.candidates * search.measure.calibration_tokens * staged * forward
    return Cost(
        tokens=tokens, own_flops=3 * tokens * forward + measured, teacher_flops=tokens * whole,
        memory_bytes=16 * num_params(cost.models[0]) + 4 * num_params(teacher) + PROCESS_BYTES,
        disk_bytes=config.candidates * 4 * num_params(cost.models[0]),
    )  # fmt: skip


def _tokenizer(config: Any, task: Task, before: Mapping[str, Cost], on_gpu: bool) -> Cost:
    """Extending a model costs hardly anything; what matters is the size of what it leaves."""
    import dataclasses

    if config.model is None:
        return Cost(memory_bytes=PROCESS_BYTES)
    sizes = _architecture(config.model, before)
    if sizes is None:
        return Cost(note=f"the sizes of {config.model} are known once it is downloaded")
    rows = pad_vocabulary(sizes.structure.vocab_size + config.add)
    extended = dataclasses.replace(sizes, structure=dataclasses.replace(sizes.structure, vocab_size=rows))
    size = 4 * num_params(extended)
    return Cost(memory_bytes=2 * size + PROCESS_BYTES, disk_bytes=size, models=(extended,))


_COSTS: dict[str, Callable[[Any, Task, Mapping[str, Cost], bool], Cost]] = {
    "search": _search, "logits": _logits, "pretrain": _pretrain, "evaluate": _evaluate, "proxies": _proxies,
    "tokenizer": _tokenizer,
}  # fmt: skip


def all_costs(tasks: Sequence[Task], *, on_gpu: bool) -> dict[str, Cost]:
    """Every task's cost by its name; tasks come before those that need them.

    Raises:
        UserError: A model that a task names does not exist.
    """
    found: dict[str, Cost] = {}
    for task in tasks:
        before = {step: found[need.name] for step, need in task.needs.items()}
        try:
            found[task.name] = cost_of(task, before, on_gpu=on_gpu)
        except UserError as error:
            raise UserError(f"{task.step}: {error}") from error
    return found
