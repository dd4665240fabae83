"""What a task will cost, before anything is spent: tokens, FLOPs, memory and disk, from sizes alone.

FLOPs are closed forms of the sizes (matrix multiplications; three passes of a trained model, one of its teacher), a
search's and a capture's counted in. Evaluations during training are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import parse_number
from slm_ray.distill.command import DEFAULT_LENGTH, LogitsConfig, bytes_per_token
from slm_ray.evaluate.config import EvaluateConfig
from slm_ray.models.scratch import pad_vocabulary
from slm_ray.models.starts import first_layers_like
from slm_ray.pretrain.accounting import training_flops
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.growth_steps import first_layers, stage_depths
from slm_ray.pretrain.scratch import ScratchModel, known_vocabulary, plan_scratch
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.records.lineage import read_lineage
from slm_ray.search import estimates
from slm_ray.search.config import SearchConfig
from slm_ray.search.dry_run import make_plan
from slm_ray.search.space import load_space
from slm_ray.studies.points import Task
from slm_ray.studies.proxies_config import ProxiesConfig
from slm_ray.studies.published import find_architecture, published_architecture

PROCESS_BYTES = 800 * 1024**2  # a worker's Python, torch and libraries; a GPU's context is of that size too
_CHECKPOINT_BYTES = 12  # of a parameter: weights and two moments, fp32
_CPU_TOKENS = 2048  # at once in a worker on a CPU where nothing is said
_BLOCK_BYTES = 256 * 1024**2  # student's and teacher's logits of a block of tokens, and their gradients


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
    teacher = _architecture(config.teacher, before)
    if teacher is None:
        return Cost(note=f"the sizes of {config.teacher} are known once it is downloaded")
    plan = make_plan(config, load_space(config.space), teacher)
    phases = estimates.estimate_phases(config, plan.space, teacher, plan.candidate)
    precision_bytes = 2 if plan.precision == "bf16" else 4
    return Cost(
        tokens=sum(phase.tokens for phase in phases), search_flops=sum(phase.flops for phase in phases),
        memory_bytes=estimates.memory_bytes(config, teacher, plan.precision, plan.workers),
        disk_bytes=config.winners * num_params(plan.candidate) * precision_bytes,
        models=(plan.candidate,) * config.winners, teacher=teacher,
    )  # fmt: skip


def _logits(config: LogitsConfig, task: Task, before: Mapping[str, Cost], on_gpu: bool) -> Cost:
    teacher = _architecture(config.teacher, before)
    tokens = config.num_tokens()
    if teacher is None or tokens is None or config.shards:
        return Cost(note=f"what the capture of {config.teacher} costs is known once its tokens are prepared")
    length = config.sequence_length or DEFAULT_LENGTH
    return Cost(
        tokens=tokens, capture_flops=float(flops_per_token(teacher, length)) * tokens,
        disk_bytes=bytes_per_token(config, teacher) * tokens, memory_bytes=PROCESS_BYTES + 4 * num_params(teacher),
        workers=config.workers or 1,
    )  # fmt: skip


def _teacher(config: PretrainConfig, before: Mapping[str, Cost]) -> Architecture | None:
    if config.teacher is not None:
        return _architecture(config.teacher, before)
    student = (config.student or "").split(",")[0]
    if config.grow_from is not None:
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
    source = config.tokenizer or ""
    published = published_architecture(source or config.teacher or "")
    if config.distill != "none" and teacher is not None:
        rows: int | None = teacher.structure.vocab_size
    elif source.startswith("${"):  # the tokenizer of a step's folder
        rows = next(sizes.structure.vocab_size for sizes in before[source[2:].partition("}")[0]].models)
    elif published is not None:
        rows = pad_vocabulary(published.structure.vocab_size)
    else:
        rows = known_vocabulary(config)
    if rows is None:
        raise UserError(f"the vocabulary of {config.tokenizer or config.teacher} is known once it is downloaded")
    return plan_scratch(config, rows)


def trained_models(config: PretrainConfig, before: Mapping[str, Cost]) -> list[tuple[Architecture, PretrainConfig]]:
    """Every model that a pretraining trains, with its options (a scratch model's batch follows from its size)."""
    teacher = _teacher(config, before)
    if config.scratch:
        return [(model.architecture, model.config(config)) for model in scratch_models(config, teacher, before)
                for _ in config.seeds()]  # fmt: skip
    if config.grow_from is not None:
        if teacher is None:
            return []
        source = _architecture(config.students()[0], before) or teacher
        return [(first_layers(source, layers).architecture_in(source), config)
                for layers in stage_depths(source.num_hidden_layers, config.grow_from, config.grow_by)]  # fmt: skip
    found = []
    for student in _models(str(config.student), before):
        for start in config.starts():
            sizes = student
            if start == "first-n" and teacher is not None:
                sizes = first_layers_like(student, teacher).architecture_in(teacher)
            found += [(sizes, config)] * len(config.seeds())
    return found


def _pretrain(config: PretrainConfig, task: Task, before: Mapping[str, Cost], on_gpu: bool) -> Cost:
    models = trained_models(config, before)
    if not models:
        return Cost(note=f"the sizes of {config.student} are known once it is downloaded", workers=config.workers)
    teacher = _teacher(config, before) if config.distill == "full" else None
    own = teachers = tokens = 0.0
    for sizes, options in models:
        count = options.num_tokens()
        forward = float(flops_per_token(sizes, config.sequence_length)) * count
        own += training_flops(forward, activation_checkpointing=config.activation_checkpointing)
        teachers += float(flops_per_token(teacher, config.sequence_length)) * count if teacher else 0.0
        tokens += count
    memory = max(training_bytes(sizes, options, teacher, on_gpu=on_gpu) for sizes, options in models)
    params = [num_params(sizes) for sizes, _ in models]
    missing = config.distill == "full" and teacher is None
    return Cost(
        tokens=tokens, own_flops=own, teacher_flops=teachers, memory_bytes=memory,
        disk_bytes=_CHECKPOINT_BYTES * (config.keep_last + 1) * sum(params) + 4 * sum(params),
        workers=config.workers, models=tuple(sizes for sizes, _ in models),
        note="the teacher's sizes are not known, its FLOPs are left out" if missing else
             "growth may end before its last stage" if config.grow_from is not None else "",
    )  # fmt: skip


def training_bytes(sizes: Architecture, config: PretrainConfig, teacher: Architecture | None, *, on_gpu: bool) -> float:
    """An estimate of a training worker's memory: state, activations, teacher, and the process itself.

    State is fp32 (4 bytes each for weights and gradients, 8 for two moments); ZeRO 1, 2 and 3 share out moments,
    gradients and weights (arXiv 1910.02054). Activations count what a layer keeps for its backward pass; with
    activation checkpointing one value a channel and one layer in full (arXiv 1604.06174).
    """
    params, share = num_params(sizes), config.workers
    moments = 0.0 if config.offload and on_gpu else 8 * params / (share if config.zero >= 1 else 1)
    gradients = 4 * params / (share if config.zero >= 2 else 1)
    weights = 4 * params / (share if config.zero >= 3 else 1)
    value_bytes = 4 if config.precision == "fp32" or (config.precision == "auto" and not on_gpu) else 2
    layers = [activation_values(sizes, layer) for layer in range(sizes.num_hidden_layers)]
    kept = sum(layers)
    if config.activation_checkpointing:
        kept = sizes.hidden_size * len(layers) + max(layers, default=0)
    of_teacher = num_params(teacher) * value_bytes if teacher is not None else 0
    state = moments + gradients + weights
    return state + micro_tokens(config, on_gpu=on_gpu) * kept * value_bytes + of_teacher + _BLOCK_BYTES + PROCESS_BYTES


def activation_values(sizes: Architecture, layer: int) -> int:
    """Values that a layer keeps of a token for its backward pass: norms' inputs and outputs, heads, MLP."""
    shape, structure = sizes.layers[layer], sizes.structure
    attention = structure.head_dim * (2 * shape.num_attention_heads + 2 * shape.num_key_value_heads)
    return 6 * sizes.hidden_size + attention + 5 * shape.intermediate_size


def micro_tokens(config: PretrainConfig, *, on_gpu: bool) -> int:
    """Tokens at once in a worker."""
    share = max(1, (config.batch_size or 1) // config.workers)
    size = config.micro_batch_size()
    if not size:  # to be found, or what suits the device
        size = share if on_gpu else max(1, min(share, _CPU_TOKENS // config.sequence_length))
    return size * config.sequence_length


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
    tokens = parse_number(config.tokens) * config.candidates
    forward = float(flops_per_token(cost.models[0], search.sequence_length))
    whole = float(flops_per_token(teacher, search.sequence_length)) if config.distill == "full" else 0.0
    staged = len([name for name in config.names() if name in ("perplexity", "kl")])
    measured = config.candidates * search.calibration_tokens * staged * forward
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
