"""``--dry-run``: what pretraining would do and what it would cost; no weights are loaded and nothing is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.data import load_corpus
from slm_ray.models.families import config_architecture
from slm_ray.models.loading import read_config
from slm_ray.models.starts import first_layers_like
from slm_ray.models.teacher_sizes import look_up_teacher
from slm_ray.pretrain.accounting import training_flops
from slm_ray.pretrain.config import FROM_STORE, SCRATCH, PretrainConfig
from slm_ray.pretrain.growth_steps import first_layers, stage_depths
from slm_ray.pretrain.scratch import ScratchModel, known_vocabulary, plan_scratch
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.records.lineage import read_lineage
from slm_ray.runtime.environment import describe_environment, usable_cpus

# Weights, gradient and AdamW's two moments, fp32.
_BYTES_PER_PARAMETER = 16
# Effective rate of a training step of a 67M-parameter model on one core with bf16 matrix instructions, measured in
# benchmarks/README.md; other machines differ, and the first steps of a run give a better estimate.
_FLOPS_PER_CORE_SECOND = 1.5e11


@dataclass(frozen=True)
class PlannedModel:
    """One model of a run.

    Attributes:
        name: What it is called.
        params: Its parameters.
        own_flops: Its own FLOPs in all.
        teacher_flops: The teacher's.
        note: More on it, for a line of its own.
    """

    name: str
    params: int
    own_flops: float
    teacher_flops: float
    note: str | None = None


def _student_architecture(source: str) -> Architecture:
    """A student's sizes from its config alone.

    Raises:
        UserError: There is no such model, or its family is not declared.
    """
    config = read_config(source)
    found = config_architecture(config)
    if found is None:
        raise UserError(f"the sizes of {source} (family '{config.model_type}') are not known: run without --dry-run")
    return found


def plan_models(config: PretrainConfig) -> list[PlannedModel]:
    """Every model that a run would train, with its size and its cost.

    Raises:
        UserError: A student or the teacher cannot be read.
    """
    if config.grow_from is not None:
        return plan_stages(config, config.grow_from)
    if config.scratch:
        return plan_new_models(config)
    teacher = _teacher_architecture(config)
    tokens, models = config.num_tokens(), []
    for source in config.students():
        student = _student_architecture(source)
        for start in config.starts():
            sizes = student
            if start == "first-n" and teacher is not None:
                sizes = first_layers_like(student, teacher).architecture_in(teacher)
            for seed in config.seeds():
                forward = flops_per_token(sizes, config.sequence_length) * tokens
                own = training_flops(forward, activation_checkpointing=config.activation_checkpointing)
                online = teacher if config.distill == "full" else None
                signal = flops_per_token(online, config.sequence_length) * tokens if online else 0
                models.append(PlannedModel(f"{Path(source).name}.{start}.seed{seed}", num_params(sizes), own, signal))
    return models


def plan_new_models(config: PretrainConfig) -> list[PlannedModel]:
    """Every model from nothing, with its exact size.

    Raises:
        UserError: A size does not go with the vocabulary, or the vocabulary is not known before a download.
    """
    rows = known_vocabulary(config)
    if rows is None:
        source = config.teacher if config.distill != "none" or config.tokenizer is None else config.tokenizer
        raise UserError(f"the vocabulary of {source} is not known before it is downloaded: run without --dry-run")
    teacher = look_up_teacher(config.teacher).architecture if config.teacher and config.distill == "full" else None
    models = []
    for model in plan_scratch(config, rows):
        own = model.config(config)
        tokens = own.num_tokens()
        forward = flops_per_token(model.architecture, config.sequence_length) * tokens
        flops = training_flops(forward, activation_checkpointing=config.activation_checkpointing)
        signal = flops_per_token(teacher, config.sequence_length) * tokens if teacher else 0
        for seed in config.seeds():
            note = describe_new_model(config, model, own.total_steps()) if seed == config.seeds()[0] else None
            name = f"{model.label}.{SCRATCH}.seed{seed}"
            models.append(PlannedModel(name, num_params(model.architecture), flops, signal, note))
    return models


def describe_new_model(config: PretrainConfig, model: ScratchModel, steps: int) -> str:
    """A new model's exact size, its shape, and what it is trained with and why."""
    shape, layer = model.architecture, model.architecture.layers[0]
    batch, rate = ("as given" if getattr(config, name) else "the ladder's" for name in ("batch_size", "learning_rate"))
    return (
        f"  {model.label}: {num_params(shape):,} parameters ({model.rung.matrix_params:,} without embeddings), "
        f"{model.positions} positions, vocabulary {shape.structure.vocab_size:,}, {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}, {layer.num_attention_heads} heads, MLP {layer.intermediate_size:,};\n    {steps:,} "
        f"steps of {model.batch_size} x {config.sequence_length} tokens ({batch}), learning rate "
        f"{model.learning_rate:.3g} ({rate})"
    )


def plan_stages(config: PretrainConfig, grow_from: int) -> list[PlannedModel]:
    """Every stage that growth may come to; it ends at the first one that is good enough.

    Raises:
        UserError: The source cannot be read, is of no declared family, or has too few layers.
    """
    name, tokens, models = config.students()[0], config.num_tokens(), []
    source = look_up_teacher(name).architecture
    if source is None:
        raise UserError(f"the sizes of {name} are not known before it is downloaded: run without --dry-run")
    teacher = look_up_teacher(config.teacher).architecture if config.teacher else source
    online = teacher if config.distill == "full" else None
    signal = flops_per_token(online, config.sequence_length) * tokens if online else 0
    for layers in stage_depths(source.num_hidden_layers, grow_from, config.grow_by):
        sizes = first_layers(source, layers).architecture_in(source)
        forward = flops_per_token(sizes, config.sequence_length) * tokens
        own = training_flops(forward, activation_checkpointing=config.activation_checkpointing)
        models.append(PlannedModel(f"{Path(name).name}.layers{layers}", num_params(sizes), own, signal))
    return models


def _teacher_architecture(config: PretrainConfig) -> Architecture | None:
    name = config.teacher or read_lineage(config.students()[0]).get("teacher", {}).get("name")
    if name is None and config.distill != "none":
        raise UserError(f"--distill {config.distill} needs a teacher: give --teacher")
    return look_up_teacher(name).architecture if name else None


def print_plan(config: PretrainConfig) -> None:
    """Print what a run would train and what it would cost.

    Args:
        config: The options, checked.

    Raises:
        UserError: Something that the run would stumble over at its start.
    """
    models = plan_models(config)
    if config.shards is None:
        load_corpus(config.data, config.text_field)
    steps = f": {config.total_steps():,} steps of {config.batch_size} x {config.sequence_length}"
    lines = [
        f"{len(models)} models, {format_count(config.num_tokens())} tokens each{'' if config.scratch else steps}",
        f"{'model':36} {'params':>8} {'own FLOPs':>10} {'teacher':>10}",
        *(_model_line(model) for model in models),
        *(model.note for model in models if model.note),
        *(["one after the other, until one reaches the reference"] if config.grow_from is not None else []),
        *_cost_lines(config, models),
    ]
    print("\n".join(lines))


def _model_line(model: PlannedModel) -> str:
    flops = f"{format_count(model.own_flops):>10} {format_count(model.teacher_flops):>10}"
    return f"{model.name:36} {format_count(model.params):>8} {flops}"


def _cost_lines(config: PretrainConfig, models: list[PlannedModel]) -> list[str]:
    largest = max(model.params for model in models)
    shared = config.workers if config.zero else 1
    checkpoints = (config.keep_last + 2) * 12 * sum(model.params for model in models)
    total = sum(model.own_flops + model.teacher_flops for model in models)
    machine: dict[str, Any] = describe_environment()
    seconds = total / (_FLOPS_PER_CORE_SECOND * usable_cpus())
    store = f", {config.distill} from {config.store}" if config.distill in FROM_STORE else f", distill {config.distill}"
    return [
        f"engine {config.engine}, ZeRO {config.zero}, {config.workers} workers, precision {config.precision}{store}",
        f"memory for weights, gradients and optimiser: {format_bytes(_BYTES_PER_PARAMETER * largest // shared)} a "
        "worker, activations come on top",
        f"disk for checkpoints and models: {format_bytes(checkpoints)}",
        f"FLOPs in all: {format_count(total)}; on this machine's {machine['cpus']} CPUs about "
        f"{format_seconds(seconds)} with bf16 matrix instructions, many times that without",
    ]
