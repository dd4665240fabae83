"""The sizes of any model we know, plain, heterogeneous or with positions of its own, read off its config."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from slm_ray.models.families import FAMILIES, Family
from slm_ray.records.architecture import Architecture, LayerShape

_PREFIX = "slm_ray_"
POSITIONS_TYPE = "slm_ray_positions"  # the classes of positions.py


def base_family(config: Any) -> Family | None:
    """The family that a plain or heterogeneous config belongs to; None where it is not one of ours."""
    return FAMILIES.get(config.model_type.removeprefix(_PREFIX))


def context_length(config: Any) -> int | None:
    """The most positions that a config allows; None where it sets no end."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def config_architecture(config: Any) -> Architecture | None:
    """The sizes of the model of a config.

    Args:
        config: A Hugging Face config, of a plain class or of one in ``hetero.py`` or ``positions.py``.

    Returns:
        Its architecture, or None where the family is not declared.
    """
    if config.model_type == POSITIONS_TYPE:
        return _with_table(FAMILIES["llama"].architecture(config), config)
    family = base_family(config)
    if family is None:
        return None
    if config.model_type == family.model_type:
        return family.architecture(config)
    structure = dataclasses.replace(family.structure(config), family=family.model_type)
    layers = tuple(_layer_shape(config, family, index) for index in range(config.num_hidden_layers))
    return Architecture(structure, int(config.hidden_size), layers)


def _with_table(architecture: Architecture, config: Any) -> Architecture:
    """A Llama's sizes with the table of its learned positions, where it has one."""
    rows = int(config.max_position_embeddings) if config.positions == "learned" else 0
    return dataclasses.replace(
        architecture, structure=dataclasses.replace(architecture.structure, learned_positions=rows)
    )


def _layer_shape(config: Any, family: Family, index: int) -> LayerShape:
    """One layer's sizes: the config's own, with that layer's overrides."""
    layer = copy.copy(config.per_layer_config[index])
    skipped = frozenset(getattr(layer, "skip", None) or ())
    heads = 0 if "attention" in skipped else int(layer.num_attention_heads)
    kv_heads = 0 if "attention" in skipped else int(getattr(layer, "num_key_value_heads", None) or heads)
    return LayerShape(heads, kv_heads, 0 if "mlp" in skipped else int(getattr(layer, family.intermediate_field)))
