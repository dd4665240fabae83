"""From a sub-network's spec to a Hugging Face model of its own: its config, its weights, its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from slm_ray.data.tokenizer_trimming import renumber_settings
from slm_ray.models.families import Family
from slm_ray.models.loading import quiet_transformers
from slm_ray.models.precision import DTYPES, dtype_name
from slm_ray.models.slicing import slice_state
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.subnet import SubnetSpec

# Fields that describe the checkpoint a config came from, or that are a student's own.
_FORGET = (
    "model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype",
    "quantization_config", "per_layer_config", "auto_map", "source_layers", "per_layer_reason",
)  # fmt: skip


def _attended(architecture: Architecture) -> Iterator[int]:
    """For each layer itself, or where it skips attention, the nearest that does not: caches are of kinds in use."""
    used = [number for number, shape in enumerate(architecture.layers) if shape.num_attention_heads]
    for number in range(architecture.num_hidden_layers):
        yield min(used, key=lambda other: (abs(other - number), other))


def _common_fields(
    config: Any, family: Family, architecture: Architecture, sources: tuple[int, ...]
) -> dict[str, Any]:
    """The teacher's fields with a student's sizes; where layers differ, the largest."""
    kept = {name: value for name, value in config.to_dict().items() if name not in _FORGET}
    largest = {
        name: max(getattr(shape, name) for shape in architecture.layers)
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    }
    fields = kept | {
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_attention_heads": largest["num_attention_heads"],
        family.intermediate_field: largest["intermediate_size"] or 1,
    }
    for name in family.per_layer_fields:
        if kept.get(name):
            fields[name] = [kept[name][sources[layer]] for layer in _attended(architecture)]
    if _has_kv_heads(config):
        fields["num_key_value_heads"] = largest["num_key_value_heads"]
    return fields


def _has_kv_heads(config: Any) -> bool:
    """Whether configs of this family have key-value heads apart from query heads."""
    return "num_key_value_heads" in type(config).__dataclass_fields__


def plain_config(config: Any, family: Family, architecture: Architecture, sources: tuple[int, ...]) -> Any:
    """The family's own config with sizes that it does not refuse."""
    fields = _common_fields(config, family, architecture, sources)
    if family.free_head_dim:
        fields["head_dim"] = architecture.structure.head_dim
    else:
        fields.pop("head_dim", None)
    return family.plain_config_class()(**fields)


def _layer_overrides(shape: LayerShape, family: Family, has_kv_heads: bool) -> dict[str, Any]:
    """One entry of ``per_layer_config``."""
    overrides: dict[str, Any] = {}
    skip = []
    if shape.num_attention_heads:
        overrides["num_attention_heads"] = shape.num_attention_heads
        if has_kv_heads:
            overrides["num_key_value_heads"] = shape.num_key_value_heads
    else:
        skip.append("attention")
    if shape.intermediate_size:
        overrides[family.intermediate_field] = shape.intermediate_size
    else:
        skip.append("mlp")
    return overrides | ({"skip": skip} if skip else {})


def per_layer_config(
    config: Any, family: Family, architecture: Architecture, sources: tuple[int, ...], reason: str | None = None
) -> Any:
    """A config with sizes layer by layer, for the family's student classes."""
    earlier = getattr(config, "source_layers", None)  # of a teacher that is itself a student
    fields = _common_fields(config, family, architecture, sources) | {
        "head_dim": architecture.structure.head_dim,
        "source_layers": [earlier[source] for source in sources] if earlier else list(sources),
    }
    if reason:
        fields["per_layer_reason"] = reason
    overrides = {
        index: _layer_overrides(shape, family, _has_kv_heads(config)) for index, shape in enumerate(architecture.layers)
    }
    return family.student_class("Config")(**fields, per_layer_config=overrides)


def student_config(config: Any, family: Family, spec: SubnetSpec, teacher: Architecture) -> Any:
    """The config of a sub-network: the plain family's where that can express it, else one with sizes per layer."""
    architecture, sources = spec.architecture_in(teacher), tuple(layer.source for layer in spec.layers)
    if spec.vocabulary is not None:
        fields = renumber_settings(config.to_dict(), spec.vocabulary)
        config = type(config)(**fields | {"vocab_size": len(spec.vocabulary)})
    reason = family.plain_class_refuses(architecture)
    if reason is None and family.scales_by_layer(config):
        reason = "its attention is scaled by the numbers of its teacher's layers"
    if reason is None:
        return plain_config(config, family, architecture, sources)
    return per_layer_config(config, family, architecture, sources, reason)


def build_empty(config: Any, family: Family) -> Any:
    """A model of this config with weights on the meta device."""
    with torch.device("meta"):
        if config.model_type == family.model_type:
            return AutoModelForCausalLM.from_config(config)
        return family.student_class("ForCausalLM")(config)


def reset_buffers(model: Any) -> None:
    """Recompute rotary frequencies and the embedding's scale, which no state dict holds, where the weights are."""
    rotary, device = getattr(model.base_model, "rotary_emb", None), next(model.parameters()).device
    if rotary is not None:
        model.base_model.rotary_emb = type(rotary)(config=rotary.config).to(device)
    embedding = model.get_input_embeddings()
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale, device=device)


def build_with(state: Mapping[str, torch.Tensor], config: Any, family: Family) -> Any:
    """A model in evaluation mode whose parameters are the tensors of a state dict themselves."""
    model = build_empty(config, family)
    model.load_state_dict(dict(state), strict=False, assign=True)
    model.tie_weights()
    reset_buffers(model)
    return model.eval()


def layers_of(base: Any, family: Family) -> Any:
    """The list of layers of a causal LM's base model."""
    layers: nn.ModuleList = getattr(base, family.layers)
    return layers


def embedding_ratio(config: Any, own: Any, family: Family) -> float:
    """What a student's embedding is multiplied by, where its class scales embeddings otherwise than its teacher's.

    Where the output head is tied to it, the final norm's scale is divided by it: logits stay as they are.
    """
    return family.embedding_scale(config) / family.embedding_scale(own)


def _times(weight: torch.Tensor, factor: float, offset: float = 0.0) -> torch.Tensor:
    return ((weight.double() + offset) * factor - offset).to(weight.dtype)


def extract(
    state: Mapping[str, torch.Tensor],
    config: Any,
    family: Family,
    spec: SubnetSpec,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """A sub-network of a teacher as a Hugging Face causal LM that shares no memory with it.

    ``dtype``: The weights' type; the teacher's by default.

    Raises:
        ValueError: The spec names units the teacher does not have.
    """
    teacher = family.architecture(config)
    weights, own = slice_state(state, family, spec, teacher), student_config(config, family, spec, teacher)
    ratio = embedding_ratio(config, own, family)
    if ratio != 1:
        weights[family.embedding] = _times(weights[family.embedding], ratio)
        if teacher.structure.tie_word_embeddings:
            norm = f"{family.final_norm}.weight"
            weights[norm] = _times(weights[norm], 1 / ratio, family.norm_offset)
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    student = build_with(weights, own, family)
    left = [name for name, tensor in student.named_parameters() if tensor.is_meta]
    if left:
        raise ValueError(f"no weights for {left[:3]}: the family's declaration misses these tensors")
    student.config.dtype = next(iter(weights.values())).dtype
    return student


@dataclass(frozen=True)
class SavedWeights:
    """The type and size of a saved model's weights."""

    dtype: str  # ``fp32``, ``bf16`` or ``fp16``
    bytes: int  # Size of its weight files


@contextlib.contextmanager
def _weights_as(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Give a model's parameters another type for a while."""
    own = [(parameter, parameter.data) for parameter in model.parameters()]
    own_dtype = model.config.dtype
    try:
        for parameter, data in own:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in own:
            parameter.data = data
        model.config.dtype = own_dtype


def save_student(student: Any, folder: Path, tokenizer: Any = None, dtype: str | None = None) -> SavedWeights:
    """Save a student so that ``from_pretrained`` loads it anywhere.

    A plain model is saved as its family's class. Any other gets its modelling files beside it, for
    ``trust_remote_code=True`` where slm_ray is not installed.

    ``dtype``: ``fp32``, ``bf16`` or ``fp16``; the model's own by default (see
    :func:`slm_ray.models.precision.export_dtype`).
    """
    chosen = DTYPES[dtype] if dtype else next(student.parameters()).dtype
    with quiet_transformers():
        with _weights_as(student, chosen):
            student.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return SavedWeights(dtype_name(chosen), sum(file.stat().st_size for file in folder.glob("*.safetensors")))
