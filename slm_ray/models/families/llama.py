"""Llama, and the builder for families that name their tensors as Llama does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slm_ray.models.families.base import (
    HEAD,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    Family,
    SubLayerNames,
    common_structure,
    linear,
    norm,
)
from slm_ray.records.architecture import Structure


def llama_like(model_type: str, stem: str, structure: Callable[[Any], Structure], **changes: Any) -> Family:
    """A family with Llama's tensor names."""
    attention = {
        **norm("input_layernorm"),
        **linear("self_attn.q_proj", QUERIES, HIDDEN),
        **linear("self_attn.k_proj", KEYS, HIDDEN),
        **linear("self_attn.v_proj", KEYS, HIDDEN),
        **linear("self_attn.o_proj", HIDDEN, QUERIES),
        "self_attn.q_norm.weight": (None,),
        "self_attn.k_norm.weight": (None,),
    }
    mlp = {
        **norm("post_attention_layernorm"),
        **linear("mlp.gate_proj", NEURONS, HIDDEN),
        **linear("mlp.up_proj", NEURONS, HIDDEN),
        **linear("mlp.down_proj", HIDDEN, NEURONS),
    }
    fields: dict[str, Any] = {
        "model_type": model_type,
        "stem": stem,
        "embedding": "model.embed_tokens.weight",
        "final_norm": "model.norm",
        "global_tensors": {
            "model.embed_tokens.weight": (None, HIDDEN), **norm("model.norm"), HEAD: (None, HIDDEN),
        },
        "attention": SubLayerNames(
            module="self_attn", norm="input_layernorm", output="self_attn.o_proj", tensors=attention
        ),
        "mlp": SubLayerNames(module="mlp", norm="post_attention_layernorm", output="mlp.down_proj", tensors=mlp),
        "structure": structure,
    }  # fmt: skip
    return Family(**{**fields, **changes})


def llama_structure(config: Any, **changes: Any) -> Structure:
    """Llama's constants, with what differs."""
    bias = bool(config.attention_bias)
    values = {"qkv_bias": bias, "attention_output_bias": bias, "mlp_bias": bool(config.mlp_bias), **changes}
    return common_structure(config, **values)


LLAMA = llama_like("llama", "SlmRayLlama", llama_structure, heads_divide_width=True)
