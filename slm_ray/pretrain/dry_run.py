"""``--dry-run``: the models of a run, and what they cost beside what this machine has; spends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slm_ray.config.errors import ConfigError
from slm_ray.config.units import format_bytes, format_count, format_seconds
from slm_ray.data.load import load_corpus
from slm_ray.data.tokenizers import load_tokenizer
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.forecast import (
    BYTES,
    PlannedModel,
    check_rows,
    forecast,
    own_type,
    planned_models,
    teacher_sizes,
)
from slm_ray.runtime.environment import describe_environment, usable_cpus
from slm_ray.runtime.forecast import Forecast

# Effective rate of a training step of a 67M-parameter model on one core with bf16 matrix instructions, measured in
# benchmarks/README.md; other machines differ, and the first steps of a run give a better estimate.
_FLOPS_PER_CORE_SECOND = 1.5e11


def plan_text(config: PretrainConfig) -> str:
    """The text of ``--dry-run``: models, FLOPs, memory beside the machine's, disk and time."""
    models = planned_models(config)
    notes = _check_rows(config, models)
    if config.data.shards is None:
        load_corpus(config.data.data, config.data.text_field)
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
        *_memory_lines(config, models, found, on_gpu=on_gpu),
        f"disk for checkpoints (fp32, with the optimiser) and models: {format_bytes(found.disk_bytes)}",
        f"FLOPs in all: {format_count(found.flops)}; on this machine's {usable_cpus()} CPUs about "
        f"{format_seconds(seconds)} with bf16 matrix instructions, many times that without",
        *(f"note: {note}" for note in (*notes, *found.notes)),
    ]
    return "\n".join(lines)


def _exported(config: PretrainConfig, model: PlannedModel) -> str:
    """Size and type of the exported weights."""
    given: str = config.checkpoint.dtype
    if given == "auto":
        given = own_type(model.source) if model.source else "fp32"
    return f"{format_bytes(BYTES[given] * model.params)} {given}"


def _check_rows(config: PretrainConfig, models: Sequence[PlannedModel]) -> list[str]:
    """Refuse embeddings of student and teacher that do not go together, and note those that differ."""
    teacher = teacher_sizes(config) if config.kind != "none" else None
    if teacher is None or config.model.scratch:
        return []
    notes, theirs = [], teacher.structure.vocab_size
    for source in config.model.students:
        ours = next(model.sizes for model in models if model.source == source).structure.vocab_size
        if ours == theirs:
            continue
        if (Path(source).expanduser() / "tokenizer.json").is_file():
            check_rows(source, ours, str(config.model.teacher or "the teacher"), theirs, len(load_tokenizer(source)))
        notes.append(
            f"{source} has {ours:,} embedding rows and its teacher {theirs:,}: the {min(ours, theirs):,} that both "
            "have are compared"
        )
    return list(dict.fromkeys(notes))


def _gpu_bytes() -> int | None:
    """Memory of this machine's GPU; None without one."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _memory_lines(
    config: PretrainConfig, models: Sequence[PlannedModel], found: Forecast, *, on_gpu: bool
) -> list[str]:
    """The memory that training needs beside what there is, and what would make it fit."""
    there = _gpu_bytes() if on_gpu else describe_environment().memory_bytes
    place = "a GPU of this machine has" if on_gpu else "this machine has"
    if config.run.address or not there:
        return [f"memory: about {format_bytes(found.memory_bytes)} on each machine, activations included"]
    lines = [f"memory: about {format_bytes(found.memory_bytes)}, activations included; {place} {format_bytes(there)}"]
    if found.memory_bytes > there:
        lines.append(f"note: it does not fit: {_memory_fix(config, models, there, on_gpu=on_gpu)}")
    return lines


def _memory_fix(config: PretrainConfig, models: Sequence[PlannedModel], there: float, *, on_gpu: bool) -> str:
    """Options with which a training fits into memory, each tried on the estimate itself."""
    shares = config.run.workers > 1
    known: list[tuple[bool, str, dict[str, object]]] = [
        (True, "--concurrent 1", {"concurrent": 1}),
        (True, "--activation-checkpointing", {"activation_checkpointing": True}),
        (True, "--micro-batch 1", {"micro_batch": 1}),
        (shares, "--zero 3", {"engine": "deepspeed", "zero": 3}),
        (on_gpu, "--zero 1 --offload", {"engine": "deepspeed", "zero": 1, "offload": True}),
        (shares and not on_gpu, "--workers 1", {"workers": 1, "min_workers": None}),
        (config.kind == "full", "a logit store (--distill top-k)", {"distill": "none"}),
    ]
    tried = [(text, changes) for applies, text, changes in known if applies]
    fits, needs = [], forecast(config, on_gpu=on_gpu, models=models).memory_bytes
    smaller: dict[str, object] = {}
    for text, changes in tried:
        needed = _memory_with(config, models, changes, on_gpu=on_gpu)
        if needed is not None and needed <= there:
            fits.append(text)
        if needed is not None and needed < needs and not {"zero", "distill"} & changes.keys() & smaller.keys():
            smaller |= changes
    if fits:
        return f"give {' or '.join(fits)}"
    least = _memory_with(config, models, smaller, on_gpu=on_gpu) or needs
    if least <= there:
        return "give " + " with ".join(text for text, changes in tried if changes.items() <= smaller.items())
    return (
        f"even with everything that saves memory it needs {format_bytes(least)}: train smaller models, or share the "
        "state out over machines (--address, --workers, --zero 3)"
    )


def _memory_with(
    config: PretrainConfig, models: Sequence[PlannedModel], changes: dict[str, object], *, on_gpu: bool
) -> float | None:
    """The memory with other options; None where they do not go together."""
    try:
        own = [replace(model, config=model.config.replace(**changes)) for model in models]
        return forecast(config.replace(**changes), on_gpu=on_gpu, models=own).memory_bytes
    except ConfigError:
        return None
