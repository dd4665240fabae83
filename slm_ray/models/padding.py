"""A student whose layers differ for programs that want more of each layer, which is filled up with zeros.

Padded heads and neurons write nothing, so logits are the same. In a model of its family's own class, weights, cache and
multiplications are those of the largest layer everywhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from slm_ray.config.errors import UserError
from slm_ray.models.extraction import build_with, per_layer_config, plain_config
from slm_ray.models.families import (
    GATE_UP,
    HIDDEN,
    KEYS,
    NEURONS,
    QKV_PER_HEAD,
    QKV_STACKED,
    QUERIES,
    Axes,
    Family,
)
from slm_ray.models.slicing import layer_indices
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.subnet import LayerUnits

_MOST_TRIES = 64


def padded_architecture(sizes: Architecture, family: Family) -> Architecture:
    """The smallest sizes of the family's plain class that hold every layer.

    Raises:
        UserError: There are none, or padding would change what the model computes.
    """
    if sizes.structure.qk_norm_over_heads:
        raise UserError(
            f"a {family.model_type} model normalises queries over all heads, which padded heads would change: "
            "it cannot be exported as a plain model where its layers differ"
        )
    attending = [layer for layer in sizes.layers if layer.num_attention_heads]
    kv_heads = max(layer.num_key_value_heads for layer in attending)
    group = max(layer.num_attention_heads // layer.num_key_value_heads for layer in attending)
    neurons = max(1, *(layer.intermediate_size for layer in sizes.layers))
    by_itself = all(layer.num_attention_heads == layer.num_key_value_heads for layer in attending)
    tries = ((kv_heads + more, group) if by_itself else (kv_heads, group + more) for more in range(_MOST_TRIES))
    for count, each in tries:
        layers = tuple(LayerShape(count * each, count, neurons, layer.sliding_window) for layer in sizes.layers)
        padded = Architecture(sizes.structure, sizes.hidden_size, layers)
        if (reason := family.plain_class_refuses(padded)) is None:
            return padded
    raise UserError(f"it cannot be a plain {family.model_type} model, however it is padded: {reason}")


def _units(number: int, shape: LayerShape, padded: LayerShape) -> LayerUnits:
    """Which of a padded layer's units a layer's own are: the first ones."""
    each = padded.num_attention_heads // padded.num_key_value_heads
    own = shape.num_attention_heads // shape.num_key_value_heads if shape.num_key_value_heads else 0
    kv_heads = tuple(range(shape.num_key_value_heads))
    queries = tuple(tuple(range(head * each, head * each + own)) for head in kv_heads)
    return LayerUnits(number, kv_heads, queries, tuple(range(shape.intermediate_size)))


def _lengths(shape: LayerShape, width: int, head_dim: int) -> dict[str, int]:
    queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    return {
        HIDDEN: width, QUERIES: queries, KEYS: keys, NEURONS: shape.intermediate_size,
        GATE_UP: 2 * shape.intermediate_size, QKV_PER_HEAD: 3 * queries, QKV_STACKED: queries + 2 * keys,
    }  # fmt: skip


def _scattered(tensor: torch.Tensor, axes: Axes, indices: Any, lengths: dict[str, int]) -> torch.Tensor:
    """A tensor's entries at their places in zeros of the padded shape."""
    for dimension, axis in enumerate(axes):
        if axis and indices.get(axis) is not None:
            shape = list(tensor.shape)
            shape[dimension] = lengths[axis]
            tensor = tensor.new_zeros(shape).index_copy_(dimension, indices[axis], tensor)
    return tensor


def give_all_attention(model: Any, family: Family) -> Any:
    """The same model with attention in every layer, of one key-value head that writes zeros where there was none."""
    sizes = family.architecture(model.config)
    if all(layer.num_attention_heads for layer in sizes.layers):
        return model
    least = min((layer for layer in sizes.layers if layer.num_attention_heads), key=lambda one: one.num_attention_heads)
    each = least.num_attention_heads // least.num_key_value_heads
    padded = dataclasses.replace(
        sizes, layers=tuple(
            layer if layer.num_attention_heads else LayerShape(each, 1, layer.intermediate_size)
            for layer in sizes.layers
        ),
    )  # fmt: skip
    order = tuple(range(sizes.num_hidden_layers))
    config = per_layer_config(model.config, family, padded, order, getattr(model.config, "per_layer_reason", None))
    config.source_layers = model.config.source_layers
    return _filled(model, family, padded, config)


def pad_to_plain(model: Any, family: Family) -> Any:
    """The same model as one of its family's own class; itself where it is one.

    Raises:
        UserError: The family's class cannot express it, however it is padded.
    """
    config = model.config
    if config.model_type == family.model_type:
        return model
    if family.scales_by_layer(config):
        raise UserError("its attention is scaled by the numbers of its teacher's layers, which no plain model does")
    sizes = family.architecture(config)
    padded = padded_architecture(sizes, family)
    return _filled(model, family, padded, plain_config(config, family, padded, tuple(range(sizes.num_hidden_layers))))


@torch.no_grad()
def _filled(model: Any, family: Family, padded: Architecture, config: Any) -> Any:
    """A model of a config with these sizes, the model's own units first in every layer and zeros behind them."""
    sizes, state = family.architecture(model.config), model.state_dict()
    like = {name: tensor for name, tensor in state.items() if not name.startswith(f"{family.base}.{family.layers}.")}
    for number, (shape, whole) in enumerate(zip(sizes.layers, padded.layers, strict=True)):
        indices = layer_indices(_units(number, shape, whole), None, padded)
        lengths = _lengths(whole, sizes.hidden_size, sizes.structure.head_dim)
        prefix = family.layer_prefix.format(number)
        for name, axes in family.layer_tensors().items():
            if (tensor := state.get(prefix + name)) is not None:
                like[prefix + name] = _scattered(tensor, axes, indices, lengths)
    built = build_with(like, config, family)
    for name, parameter in list(built.named_parameters()):
        if parameter.is_meta:  # of a sub-layer that is skipped: it writes zeros, whatever it reads
            owner, _, leaf = name.rpartition(".")
            is_norm = parameter.dim() == 1 and leaf == "weight"
            filled = torch.full(parameter.shape, 1.0 - family.norm_offset if is_norm else 0.0, dtype=model.dtype)
            setattr(built.get_submodule(owner), leaf, torch.nn.Parameter(filled))
    return built
