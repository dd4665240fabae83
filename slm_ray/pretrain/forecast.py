"""What a training costs, from sizes alone: FLOPs, memory and disk, for ``--dry-run`` and for studies of many runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.data.corpus import Corpus
from slm_ray.data.load import BY_TEACHER, load_corpus
from slm_ray.models.families import config_architecture
from slm_ray.models.loading import read_config
from slm_ray.models.starts import first_layers_like
from slm_ray.models.teacher_sizes import look_up_teacher
from slm_ray.models.teachers import loadable
from slm_ray.pretrain.components import SCRATCH
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.scratch import ScratchModel, known_vocabulary, plan_scratch
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.records.lineage import pruned_from
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.runtime.environment import describe_environment, usable_cpus
from slm_ray.runtime.forecast import Forecast, Work

CHECKPOINT_BYTES = 12  # per parameter: weights and two moments, fp32
PROCESS_BYTES = 800 * 1024**2  # a worker's Python, torch and libraries; a GPU's context is of that size too
CPU_TOKENS = 2048  # per forward pass of a worker on a CPU where no micro-batch is given; more do not run faster
_BLOCK_BYTES = 256 * 1024**2  # student's and teacher's logits of a block of tokens, and their gradients
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Effective rate of a training step of a 67M-parameter model on one core with bf16 matrix instructions, measured in
# benchmarks/README.md; other machines differ, and the first steps of a run give a better estimate.
_FLOPS_PER_CORE_SECOND = 1.5e11
_MEMORY_FIX = (
    "give --activation-checkpointing, --micro-batch 1 or --concurrent 1, a logit store instead of the teacher, or "
    "--zero 3 with the state shared out over the --workers of several machines (--address)"
)

SizesOf = Callable[[str], Architecture | None]
"""Takes a model's name and returns its sizes; None where only a download would tell."""


@dataclass(frozen=True)
class PlannedModel:
    """One model of a run."""

    name: str  # Its name
    sizes: Architecture  # Its sizes
    config: PretrainConfig  # Its options, with its own batch and rate
    source: str | None = None  # The student that it is, or that its start is made from; None for one from scratch
    note: str | None = None  # More on it, for a line of its own

    @property
    def params(self) -> int:
        """Its parameters."""
        return num_params(self.sizes)

    @property
    def own_flops(self) -> float:
        """FLOPs of its training, without the teacher's."""
        forward = float(flops_per_token(self.sizes, self.config.data.sequence_length)) * self.config.num_tokens
        return training_flops(forward, self.config)


def training_flops(forward_flops: float, config: PretrainConfig) -> float:
    """FLOPs of training on text whose forward pass takes ``forward_flops``.

    The backward pass counts twice the forward pass: every product has a gradient for its input and one for its weights.
    Activation checkpointing adds a second forward pass (a little less in truth: the output head is not run again). The
    optimiser's own work and evaluations are not counted.
    """
    return forward_flops * (4 if config.engine.activation_checkpointing else 3)


def stage_depths(source_layers: int, grow_from: int, grow_by: int) -> tuple[int, ...]:
    """The depth of every stage of growth there may be; the last one is the source's whole depth."""
    if grow_from > source_layers:
        raise UserError(
            f"--grow-from {grow_from} is more than the {source_layers} layers that --student has: give {source_layers} "
            "or less"
        )
    return (*range(grow_from, source_layers, grow_by), source_layers)


def first_layers(source: Architecture, layers: int) -> SubnetSpec:
    """A source's first layers, whole."""
    whole = full_subnet(source)
    return SubnetSpec(whole.hidden, whole.layers[:layers])


def local_sizes(name: str) -> Architecture | None:
    """A model's sizes from its config alone, here or in the hub's cache; a folder needs no weights for that."""
    if (Path(name).expanduser() / "config.json").is_file():
        config = read_config(Path(name).expanduser())
        found = config_architecture(config)
        if found is None:
            raise UserError(f"the sizes of {name} (family '{config.model_type}') are not known: run without --dry-run")
        return found
    return look_up_teacher(name).architecture


def teacher_sizes(config: PretrainConfig, sizes_of: SizesOf = local_sizes) -> Architecture | None:
    """The sizes of the teacher that a run would load; None where there is none, or only a download would tell."""
    name = config.model.teacher
    if name is None and config.model.students:
        first = config.model.students[0]
        grows = config.growth.grow_from is not None
        name = first if grows else pruned_from(first)
    return sizes_of(name) if name else None


def planned_models(
    config: PretrainConfig, sizes_of: SizesOf = local_sizes, *, rows: int | None = None
) -> list[PlannedModel]:
    """Every model that a run would train; of growth, every stage that it may come to."""
    teacher = teacher_sizes(config, sizes_of)
    if config.model.scratch:
        return list(_new_models(config, rows or known_vocabulary(config)))
    if config.growth.grow_from is not None:
        return _stages(config, config.growth.grow_from, sizes_of)
    models = []
    for source in config.model.students:
        student = _known(source, sizes_of)
        for start in config.model.starts:
            sizes = student
            if start == "first-n" and teacher is not None:
                sizes = first_layers_like(student, teacher).architecture_in(teacher)
            models += [PlannedModel(f"{Path(source).name}.{start}.seed{seed}", sizes, config, source)
                       for seed in config.batch.seed]  # fmt: skip
    return models


def _known(name: str, sizes_of: SizesOf) -> Architecture:
    sizes = sizes_of(name)
    if sizes is None:
        raise UserError(f"the sizes of {name} are not known before it is downloaded: run without --dry-run")
    return sizes


def _new_models(config: PretrainConfig, rows: int | None) -> Iterator[PlannedModel]:
    if rows is None:
        from_teacher = config.kind != "none" or config.model.tokenizer is None
        source = config.model.teacher if from_teacher else config.model.tokenizer
        raise UserError(f"the vocabulary of {source} is not known before it is downloaded: run without --dry-run")
    for model in plan_scratch(config, rows):
        own = model.config(config)
        for seed in config.batch.seed:
            note = _describe(config, model, own.total_steps) if seed == config.batch.seed[0] else None
            yield PlannedModel(f"{model.label}.{SCRATCH}.seed{seed}", model.architecture, own, note=note)


def _describe(config: PretrainConfig, model: ScratchModel, steps: int) -> str:
    """A new model's exact size, its shape, and its batch and rate with their reasons."""
    shape, layer = model.architecture, model.architecture.layers[0]
    given = (config.batch.batch_size, config.optimizer.learning_rate)
    batch, rate = ("as given" if value else "the ladder's" for value in given)
    return (
        f"  {model.label}: {num_params(shape):,} parameters ({model.rung.matrix_params:,} without embeddings), "
        f"{model.positions} positions, vocabulary {shape.structure.vocab_size:,}, {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}, {layer.num_attention_heads} heads, MLP {layer.intermediate_size:,};\n    {steps:,} "
        f"steps of {model.batch_size} x {config.data.sequence_length} tokens ({batch}), learning rate "
        f"{model.learning_rate:.3g} ({rate})"
    )


def _stages(config: PretrainConfig, grow_from: int, sizes_of: SizesOf) -> list[PlannedModel]:
    name = config.model.students[0]
    source = _known(name, sizes_of)
    return [
        PlannedModel(
            f"{Path(name).name}.layers{layers}", first_layers(source, layers).architecture_in(source), config, name
        )
        for layers in stage_depths(source.num_hidden_layers, grow_from, config.growth.grow_by)
    ]


def forecast(
    config: PretrainConfig, sizes_of: SizesOf = local_sizes, *, on_gpu: bool = False,
    models: Sequence[PlannedModel] | None = None,
) -> Forecast:  # fmt: skip
    """What a run will cost.

    ``models``: The models of the run; :func:`planned_models` by default.
    """
    models = planned_models(config, sizes_of) if models is None else models
    teacher = teacher_sizes(config, sizes_of) if config.kind == "full" else None
    work: list[Work] = []
    for model in models:
        tokens, length = model.config.num_tokens, config.data.sequence_length
        work.append(Work(name=model.name, kind="training", tokens=tokens, flops=model.own_flops))
        if teacher is not None:
            flops = float(flops_per_token(teacher, length)) * tokens
            work.append(Work(name=f"{model.name}, teacher", kind="teacher", flops=flops))
    sizes = sorted(training_bytes(model.sizes, model.config, teacher, on_gpu=on_gpu) for model in models)
    grows = config.growth.grow_from is not None
    at_once = 1 if on_gpu or grows else _at_once(config, len(models))
    workers = 1 if on_gpu or config.run.address else config.run.workers
    params = sum(model.params for model in models)
    notes = ["growth may end before its last stage"] if grows else []
    if config.kind == "full" and teacher is None:
        notes.append("the teacher's sizes are not known: its FLOPs and memory are left out")
    return Forecast(
        work=tuple(work), memory_bytes=workers * sum(sizes[-at_once:]), workers=config.run.workers,
        disk_bytes=(CHECKPOINT_BYTES * (config.checkpoint.keep_last + 1) + BYTES["fp32"]) * params,
        notes=tuple(notes),
    )  # fmt: skip


def _at_once(config: PretrainConfig, num_models: int) -> int:
    """Models that are trained at once on this machine."""
    run = config.run
    if run.launcher == "local":
        return 1
    wanted = min(num_models, run.concurrent or num_models)
    threads = run.threads or max(1, usable_cpus() // (run.workers * wanted))
    return max(1, min(wanted, usable_cpus() // (run.workers * threads)))


def training_bytes(sizes: Architecture, config: PretrainConfig, teacher: Architecture | None, *, on_gpu: bool) -> float:
    """An estimate of a training worker's memory: state, activations, teacher, and the process itself.

    State is fp32 (4 bytes each for weights and gradients, 8 for two moments); ZeRO 1, 2 and 3 share out moments,
    gradients and weights (arXiv 1910.02054). Activations count what a layer keeps for its backward pass; with
    activation checkpointing one value per channel and one layer in full (arXiv 1604.06174).
    """
    params, share, engine = num_params(sizes), config.run.workers, config.engine
    moments = 0.0 if engine.offload and on_gpu else 8 * params / (share if engine.zero >= 1 else 1)
    gradients = 4 * params / (share if engine.zero >= 2 else 1)
    weights = 4 * params / (share if engine.zero >= 3 else 1)
    value_bytes = 4 if engine.precision == "fp32" or (engine.precision == "auto" and not on_gpu) else 2
    layers = [_activation_values(sizes, layer) for layer in range(sizes.num_hidden_layers)]
    kept = sum(layers)
    if engine.activation_checkpointing:
        kept = sizes.hidden_size * len(layers) + max(layers, default=0)
    of_teacher = num_params(teacher) * value_bytes if teacher is not None else 0
    activations = _micro_tokens(config, on_gpu=on_gpu) * kept * value_bytes
    return moments + gradients + weights + activations + of_teacher + _BLOCK_BYTES + PROCESS_BYTES


def _activation_values(sizes: Architecture, layer: int) -> int:
    """Values that a layer keeps of a token for its backward pass: norms' inputs and outputs, heads, MLP."""
    shape, structure = sizes.layers[layer], sizes.structure
    attention = structure.head_dim * (2 * shape.num_attention_heads + 2 * shape.num_key_value_heads)
    return 6 * sizes.hidden_size + attention + 5 * shape.intermediate_size


def _micro_tokens(config: PretrainConfig, *, on_gpu: bool) -> int:
    """Tokens per forward pass of a worker."""
    share, length = max(1, config.batch_size // config.run.workers), config.data.sequence_length
    given = config.batch.micro_batch
    if isinstance(given, int):
        return given * length
    return length * (share if on_gpu else max(1, min(share, CPU_TOKENS // length)))


def own_type(source: str) -> str:
    """The type of a model's saved weights (``fp32``, ``bf16``, ``fp16``); bf16 for GGUF, whose types torch lacks."""
    path = Path(source).expanduser()
    if not (path / "config.json").is_file() and (path.suffix == ".gguf" or loadable(source) != source):
        return "bf16"
    dtype = str(getattr(read_config(path if path.is_dir() else source), "dtype", None)).removeprefix("torch.")
    return {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "fp32")


def plan_text(config: PretrainConfig) -> str:
    """The text of ``--dry-run``: models, FLOPs, memory beside the machine's, disk and time."""
    models = planned_models(config)
    if config.data.shards is None:
        load_corpus(config.data.data, config.data.text_field, by_teacher=lambda: Corpus(BY_TEACHER, list))
    on_gpu = config.run.device != "cpu" and _gpu_bytes() is not None
    found = forecast(config, on_gpu=on_gpu, models=models)
    by_name = {part.name: part for part in found.work}
    steps = "" if config.model.scratch else (
        f": {config.total_steps:,} steps of {config.batch_size} x {config.data.sequence_length}"
    )  # fmt: skip
    engine, run = config.engine, config.run
    store = f" from {config.distill.store}" if config.distill.from_store else ""
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    lines = [
        f"{count}, {format_count(config.num_tokens)} tokens each{steps}",
        f"{'model':36} {'params':>8} {'own FLOPs':>10} {'teacher':>10} {'exported':>14}",
    ]
    for model in models:
        teacher = by_name.get(f"{model.name}, teacher")
        lines.append(
            f"{model.name:36} {format_count(model.params):>8} {format_count(model.own_flops):>10} "
            f"{format_count(teacher.flops if teacher else 0):>10} {_exported(config, model):>14}"
        )
    lines += [model.note for model in models if model.note]
    if config.growth.grow_from is not None:
        lines.append("one after the other, until one reaches the reference")
    seconds = found.flops / (_FLOPS_PER_CORE_SECOND * usable_cpus())
    workers = "1 worker" if run.workers == 1 else f"{run.workers} workers"
    lines += [
        f"engine {engine.engine}, ZeRO {engine.zero}, {workers}, precision {engine.precision}, "
        f"distill {config.kind}{store}",
        *_memory_lines(config, found, on_gpu=on_gpu),
        f"disk for checkpoints (fp32, with the optimiser) and models: {format_bytes(found.disk_bytes)}",
        f"FLOPs in all: {format_count(found.flops)}; on this machine's {usable_cpus()} CPUs about "
        f"{format_seconds(seconds)} with bf16 matrix instructions, many times that without",
        *(f"note: {note}" for note in found.notes),
    ]
    return "\n".join(lines)


def _exported(config: PretrainConfig, model: PlannedModel) -> str:
    """Size and type of the exported weights."""
    given: str = config.checkpoint.dtype
    if given == "auto":
        given = own_type(model.source) if model.source else "fp32"
    return f"{format_bytes(BYTES[given] * model.params)} {given}"


def _gpu_bytes() -> int | None:
    """Memory of this machine's GPU; None without one."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _memory_lines(config: PretrainConfig, found: Forecast, *, on_gpu: bool) -> list[str]:
    """The memory that training needs beside what there is, and what may make it fit."""
    there = _gpu_bytes() if on_gpu else describe_environment().memory_bytes
    place = "a GPU of this machine has" if on_gpu else "this machine has"
    if config.run.address or not there:
        return [f"memory: about {format_bytes(found.memory_bytes)} on each machine, activations included"]
    lines = [f"memory: about {format_bytes(found.memory_bytes)}, activations included; {place} {format_bytes(there)}"]
    if found.memory_bytes > there:
        lines.append(f"note: it does not fit: {_MEMORY_FIX}")
    return lines
