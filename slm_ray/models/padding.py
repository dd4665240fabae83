"""A student's weights at their places in its teacher's shape, zeros elsewhere: the same function, as a plain model.

Layers of a student differ in size, and those of a teacher must not. With the columns of the units that are not there at
zero, in what their sub-layer writes, the padded model computes what the student does, whatever else it holds for them.
That takes all residual channels: a norm's mean and mean square over channels that are always zero are others than over
those the student has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from slm_ray.models.families import HIDDEN, Axes, Family
from slm_ray.models.slicing import HEAD, Index, layer_indices
from slm_ray.models.teachers import WEIGHTS_FILE, Teacher, quiet_transformers
from slm_ray.records.files import whole_folder
from slm_ray.records.subnet import SubnetSpec


def pad_state(
    student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], family: Family, config: Any,
    spec: SubnetSpec,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """A student's state dict in its teacher's shape.

    Args:
        student: Its state dict, layers numbered from 0.
        teacher: The teacher's, for its shapes alone.
        family: Their family.
        config: The teacher's config.
        spec: Which of the teacher's units the student has.

    Returns:
        Name to tensor of the student's type, of every tensor that the teacher has.

    Raises:
        ValueError: The student lacks residual channels, or tensors of its spec.
    """
    sizes = family.architecture(config)
    spec.architecture_in(sizes)
    if len(spec.hidden) < sizes.hidden_size:
        raise ValueError(f"a student of {len(spec.hidden)} of {sizes.hidden_size} residual channels cannot be padded")
    places: dict[str, tuple[str, Axes, dict[str, Index]]] = {
        name: (name, axes, {}) for name, axes in family.global_tensors.items() if name in teacher
    }
    for number, layer in enumerate(spec.layers):
        indices = layer_indices(layer, None, sizes)
        kept = family.attention_tensors if layer.kv_heads else {}
        for name, axes in {**kept, **(family.mlp_tensors if layer.neurons else {})}.items():
            source = family.layer_prefix.format(layer.source) + name
            if source in teacher:
                places[source] = (family.layer_prefix.format(number) + name, axes, indices)
    missing = sorted(own for own, _, _ in places.values() if own not in student)
    if missing:
        raise ValueError(f"the student lacks {len(missing)} tensors of its spec, '{missing[0]}' first")
    dtype = next(iter(student.values())).dtype
    padded = {name: torch.zeros(tensor.shape, dtype=dtype) for name, tensor in teacher.items()}
    for name, (own, axes, indices) in places.items():
        _put(padded[name], student[own].detach().to(dtype), axes, indices)
    return padded


def _put(whole: torch.Tensor, part: torch.Tensor, axes: Axes, indices: Mapping[str, Index]) -> None:
    """Write a student's tensor to its places in one of the teacher's shape."""
    rows: list[torch.Tensor] = []
    for dimension, axis in enumerate(axes):
        index = indices.get(axis) if axis and axis != HIDDEN else None
        index = torch.arange(whole.shape[dimension]) if index is None else index
        rows.append(index.view([-1 if place == dimension else 1 for place in range(len(axes))]))
    whole[tuple(rows)] = part


def save_padded(student: Any, teacher: Teacher, spec: SubnetSpec, folder: Path) -> None:
    """Save a student as a plain model folder of its teacher's shape; it appears whole or not at all.

    Args:
        student: The student as a causal LM.
        teacher: What it was cut from.
        spec: Which of the teacher's units it has.
        folder: Where it goes.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
        ValueError: The student lacks residual channels, or tensors of its spec.
    """
    config, state = teacher.config(), teacher.state()
    own = {name: tensor for name, tensor in student.state_dict().items() if name != HEAD or HEAD in state}
    padded = pad_state(own, state, teacher.family(), config, spec)
    config.dtype = next(iter(padded.values())).dtype
    with quiet_transformers(), whole_folder(folder) as temporary:
        save_file(padded, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        config.save_pretrained(temporary)
        teacher.tokenizer().save_pretrained(temporary)
