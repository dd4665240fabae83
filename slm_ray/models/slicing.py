"""Slices of a teacher's tensors: the units that a sub-network keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from slm_ray.models.families import (
    GATE_UP,
    HEAD,
    HIDDEN,
    KEYS,
    NEURONS,
    QKV_PER_HEAD,
    QKV_STACKED,
    QUERIES,
    Axes,
    Family,
)
from slm_ray.records.architecture import Architecture
from slm_ray.records.subnet import LayerUnits, SubnetSpec

Index = torch.Tensor | None


def _index(units: Sequence[int], count: int) -> Index:
    """The kept indices as a tensor ``[kept]``, or None where all are kept."""
    return None if len(units) == count else torch.tensor(units, dtype=torch.long)


def _expand(units: Sequence[int], width: int) -> list[int]:
    """Every row of each unit, when unit ``u`` owns rows ``u * width .. u * width + width - 1``."""
    return [unit * width + offset for unit in units for offset in range(width)]


def layer_indices(layer: LayerUnits, hidden: Index, teacher: Architecture) -> dict[str, Index]:
    """For each axis of one layer, which rows of the teacher's tensors are kept (None: all of them)."""
    shape, head_dim = teacher.layers[layer.source], teacher.structure.head_dim
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    query_rows, kv_rows = _expand(layer.flat_query_heads, head_dim), _expand(layer.kv_heads, head_dim)
    inner, kv_inner, neurons = heads * head_dim, kv_heads * head_dim, shape.intermediate_size
    keys, values = ([inner + part * kv_inner + row for row in kv_rows] for part in (0, 1))
    return {
        HIDDEN: hidden,
        QUERIES: _index(query_rows, inner),
        KEYS: _index(kv_rows, kv_inner),
        NEURONS: _index(layer.neurons, neurons),
        GATE_UP: _index([part * neurons + neuron for part in range(2) for neuron in layer.neurons], 2 * neurons),
        QKV_PER_HEAD: _index(_expand(layer.kv_heads, 3 * head_dim), 3 * inner),
        QKV_STACKED: _index([*query_rows, *keys, *values], inner + 2 * kv_inner),
    }


def hidden_index(spec: SubnetSpec, teacher: Architecture) -> Index:
    """Which residual channels are kept, or None where all are."""
    return _index(spec.hidden, teacher.hidden_size)


def slice_tensor(tensor: torch.Tensor, axes: Axes, indices: Mapping[str, Index]) -> torch.Tensor:
    """Keep the rows that ``indices`` names along each axis; a view of the teacher's memory where all are kept."""
    for dimension, axis in enumerate(axes):
        index = indices.get(axis) if axis else None
        if index is not None:
            tensor = tensor.index_select(dimension, index.to(tensor.device))
    return tensor


def layer_slices(
    state: Mapping[str, torch.Tensor], family: Family, layer: LayerUnits, indices: Mapping[str, Index]
) -> Iterator[tuple[str, torch.Tensor]]:
    """A kept layer's tensors, by their name within the layer; sub-layers that are skipped give none."""
    prefix = family.layer_prefix.format(layer.source)
    tensors: dict[str, Axes] = {}
    if layer.kv_heads:
        tensors.update(family.attention.tensors)
    if layer.neurons:
        tensors.update(family.mlp.tensors)
    for name, axes in tensors.items():
        tensor = state.get(prefix + name)
        if tensor is not None:
            yield name, slice_tensor(tensor, axes, indices)


def slice_state(
    state: Mapping[str, torch.Tensor], family: Family, spec: SubnetSpec, teacher: Architecture
) -> dict[str, torch.Tensor]:
    """The state dict of a sub-network, in memory of its own.

    Raises:
        ValueError: The sub-network names units the teacher does not have.
    """
    spec.architecture_in(teacher)
    hidden = hidden_index(spec, teacher)
    sliced = {
        name: slice_tensor(state[name], axes, {HIDDEN: hidden})
        for name, axes in family.global_tensors.items()
        if name in state and not (name == HEAD and teacher.structure.tie_word_embeddings)
    }
    if spec.vocabulary is not None:
        kept = torch.tensor(spec.vocabulary)
        for name in {family.embedding, HEAD}:
            if name in sliced:
                sliced[name] = sliced[name].index_select(0, kept.to(sliced[name].device))
    for number, layer in enumerate(spec.layers):
        indices = layer_indices(layer, hidden, teacher)
        for name, tensor in layer_slices(state, family, layer, indices):
            sliced[family.layer_prefix.format(number) + name] = tensor
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in sliced.items()}
