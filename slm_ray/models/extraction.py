"""From a sub-network's spec to a Hugging Face model of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from slm_ray.models import hetero
from slm_ray.models.families import Family
from slm_ray.models.slicing import slice_state
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.subnet import SubnetSpec

# Fields that describe the checkpoint a config came from, or that transformers derives anew.
_FORGET = (
    "model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype", "layer_types",
    "quantization_config", "per_layer_config", "auto_map",
)  # fmt: skip


def _kept_fields(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _FORGET}


def plain_config(config: Any, family: Family, architecture: Architecture) -> Any | None:
    """The family's own config with these sizes, or None where the plain class cannot express them."""
    if not architecture.is_uniform:
        return None
    shape, head_dim = architecture.layers[0], architecture.structure.head_dim
    if not family.free_head_dim and shape.num_attention_heads * head_dim != architecture.hidden_size:
        return None
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return None
    fields = _kept_fields(config) | {
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        family.intermediate_field: shape.intermediate_size,
    }
    if hasattr(config, "num_key_value_heads"):
        fields["num_key_value_heads"] = shape.num_key_value_heads
    if family.free_head_dim:
        fields["head_dim"] = head_dim
    try:
        return type(config)(**fields)
    except Exception as error:
        # transformers' validators raise types of their own; a size they refuse needs our class. Anything else is a bug.
        if "multiple" in str(error) or "divisible" in str(error):
            return None
        raise


def _layer_overrides(shape: LayerShape, family: Family) -> dict[str, Any]:
    """One entry of ``per_layer_config``."""
    overrides: dict[str, Any] = {}
    skip = []
    if shape.num_attention_heads:
        overrides["num_attention_heads"] = shape.num_attention_heads
        overrides["num_key_value_heads"] = shape.num_key_value_heads
    else:
        skip.append("attention")
    if shape.intermediate_size:
        overrides[family.intermediate_field] = shape.intermediate_size
    else:
        skip.append("mlp")
    return overrides | ({"skip": skip} if skip else {})


def heterogeneous_config(config: Any, family: Family, architecture: Architecture, sources: tuple[int, ...]) -> Any:
    """A config whose layers differ in size, for the family's class in ``hetero.py``.

    Args:
        config: The teacher's config.
        family: Its family.
        architecture: The student's sizes.
        sources: The teacher's layer that each of the student's layers came from.
    """
    fields = _kept_fields(config) | {
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_hidden_layers,
        "head_dim": architecture.structure.head_dim,
        family.intermediate_field: max(shape.intermediate_size for shape in architecture.layers) or 1,
        "num_attention_heads": max(shape.num_attention_heads for shape in architecture.layers),
        "source_layers": list(sources),
    }
    overrides = {index: _layer_overrides(shape, family) for index, shape in enumerate(architecture.layers)}
    if hasattr(config, "num_key_value_heads"):
        fields["num_key_value_heads"] = max(shape.num_key_value_heads for shape in architecture.layers)
    else:
        for override in overrides.values():
            override.pop("num_key_value_heads", None)
    config_class = getattr(hetero, family.student_class[1])
    return config_class(**fields, per_layer_config=overrides)


def student_config(config: Any, family: Family, spec: SubnetSpec, teacher: Architecture) -> Any:
    """The config of a sub-network: the plain family's where that can express it, else a heterogeneous one."""
    architecture = spec.architecture_in(teacher)
    plain = plain_config(config, family, architecture)
    if plain is not None:
        return plain
    return heterogeneous_config(config, family, architecture, tuple(layer.source for layer in spec.layers))


def build_empty(config: Any, family: Family) -> Any:
    """A model of this config with weights on the meta device."""
    with torch.device("meta"):
        if config.model_type == family.model_type:
            return AutoModelForCausalLM.from_config(config)
        return getattr(hetero, family.student_class[0])(config)


def reset_rotary(model: Any) -> None:
    """Recompute the rotary frequencies, which are buffers no state dict holds, where the model's weights are."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is not None:
        model.base_model.rotary_emb = type(rotary)(config=rotary.config).to(next(model.parameters()).device)


def extract(
    state: Mapping[str, torch.Tensor],
    config: Any,
    family: Family,
    spec: SubnetSpec,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """Cut a sub-network out of a teacher, as a Hugging Face causal LM that shares no memory with it.

    Args:
        state: The teacher's state dict.
        config: The teacher's config.
        family: The teacher's family.
        spec: What to keep.
        dtype: The weights' type; the teacher's by default.

    Returns:
        A model in evaluation mode. Its logits equal the teacher's with the dropped units masked.

    Raises:
        ValueError: The spec names units the teacher does not have.
    """
    teacher = family.architecture(config)
    student = build_empty(student_config(config, family, spec, teacher), family)
    weights = slice_state(state, family, spec, teacher)
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    student.load_state_dict(weights, strict=False, assign=True)
    student.tie_weights()
    reset_rotary(student)
    left = [name for name, tensor in student.named_parameters() if tensor.is_meta]
    if left:
        raise ValueError(f"no weights for {left[:3]}: the family's declaration misses these tensors")
    student.config.dtype = next(iter(weights.values())).dtype
    return student.eval()


def save_student(student: Any, folder: Path) -> None:
    """Save a student so that ``from_pretrained`` loads it anywhere.

    A plain model is saved as its family's class. Any other gets its modelling file beside it, for
    ``trust_remote_code=True`` where slm_ray is not installed.
    """
    student.save_pretrained(folder)
