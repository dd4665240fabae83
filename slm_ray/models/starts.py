"""Where training starts: a winner's own weights, random ones, the teacher's first layers, or a random sub-network."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.models.extraction import extract
from slm_ray.models.families import config_architecture
from slm_ray.models.loading import load_student
from slm_ray.models.teachers import Teacher
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.budget import QUANTITIES, Budget, measure_cost
from slm_ray.records.cost import num_params
from slm_ray.records.subnet import LayerUnits, SubnetSpec, full_subnet


def build_start(start: str, student: Path | str, name: str, seed: int, teacher: Teacher | None) -> Any:
    """A student in fp32 with its starting weights."""
    model = load_student(student, name)
    if start == "student":
        return model
    if start == "random":
        return _random_weights(model, seed)
    if teacher is None:
        raise UserError(f"--start {start} takes its weights from a teacher: give --teacher")
    return _from_teacher(start, model, name, seed, teacher)


def _random_weights(model: Any, seed: int) -> Any:
    """The same architecture as its class initialises it."""
    torch.manual_seed(seed)
    fresh = type(model)(model.config).float()
    fresh.generation_config = model.generation_config
    fresh.config.dtype = torch.float32
    return fresh


def _from_teacher(start: str, model: Any, name: str, seed: int, teacher: Teacher) -> Any:
    architecture, whole = config_architecture(model.config), teacher.architecture()
    if architecture is None:
        raise UserError(
            f"--start {start} needs the sizes of {name}, whose family '{model.config.model_type}' is not declared: "
            "see docs/adding_a_family.md"
        )
    spec = first_layers_like(architecture, whole) if start == "first-n" else random_like(architecture, whole, seed)
    student = extract(teacher.state(), teacher.config(), teacher.family(), spec, dtype=torch.float32)
    student.generation_config = model.generation_config
    return student


def first_n(teacher: Architecture, budget: Budget, sequence_length: int, target_cost: int | None = None) -> SubnetSpec:
    """Inheritune's student (arXiv 2404.08634): the first n whole layers, n as large as a cost allows.

    ``sequence_length``: The context at which FLOPs are counted.
    """
    whole = full_subnet(teacher)
    prefixes = [SubnetSpec(whole.hidden, whole.layers[:count]) for count in range(1, teacher.num_hidden_layers + 1)]
    costs = [measure_cost(prefix.architecture_in(teacher), budget.quantity, sequence_length) for prefix in prefixes]
    for ceiling in (min(budget.high, budget.high if target_cost is None else target_cost), budget.high):
        if fitting := [prefix for prefix, cost in zip(prefixes, costs, strict=True) if cost <= ceiling]:
            return fitting[-1]
    raise UserError(
        f"even the teacher's first layer alone has {format_count(costs[0])} {QUANTITIES[budget.quantity]}, more than"
        f" the budget's {format_count(budget.high)}: choose a higher budget"
    )


def first_layers_like(student: Architecture, teacher: Architecture) -> SubnetSpec:
    """The teacher's first whole layers, embeddings and final norm included, as many as the student's size allows."""
    size = num_params(student)
    return first_n(teacher, Budget("params", 0, size), student.structure.max_position_embeddings)


def _sample(rng: random.Random, total: int, count: int) -> tuple[int, ...]:
    return tuple(sorted(rng.sample(range(total), count)))


def _random_layer(rng: random.Random, source: int, shape: LayerShape, whole: LayerShape) -> LayerUnits:
    kv_heads = _sample(rng, whole.num_key_value_heads, shape.num_key_value_heads)
    groups = []
    for kv_head in kv_heads:
        per_group = whole.num_attention_heads // whole.num_key_value_heads
        kept = _sample(rng, per_group, shape.num_attention_heads // shape.num_key_value_heads)
        groups.append(tuple(kv_head * per_group + query for query in kept))
    return LayerUnits(source, kv_heads, tuple(groups), _sample(rng, whole.intermediate_size, shape.intermediate_size))


def random_like(student: Architecture, teacher: Architecture, seed: int) -> SubnetSpec:
    """A random sub-network of the teacher with exactly the student's sizes."""
    rng, whole = random.Random(seed), teacher.layers[0]
    largest = [
        max(getattr(layer, field) for layer in student.layers)
        for field in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    ]
    limits = [whole.num_attention_heads, whole.num_key_value_heads, whole.intermediate_size]
    if (
        student.num_hidden_layers > teacher.num_hidden_layers
        or student.hidden_size > teacher.hidden_size
        or any(size > limit for size, limit in zip(largest, limits, strict=True))
        or student.structure.head_dim != teacher.structure.head_dim
    ):
        raise UserError(
            "--start random-subnet needs a student that fits into the teacher: give the teacher it came from"
        )
    sources = _sample(rng, teacher.num_hidden_layers, student.num_hidden_layers)
    layers = tuple(
        _random_layer(rng, source, shape, teacher.layers[source])
        for source, shape in zip(sources, student.layers, strict=True)
    )
    return SubnetSpec(_sample(rng, teacher.hidden_size, student.hidden_size), layers)
