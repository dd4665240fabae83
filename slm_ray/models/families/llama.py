"""Llama, and the builder for families that name their tensors as Llama does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from slm_ray.models.families.base import (
    HEAD,
    HIDDEN,
    KEYS,
    NEURONS,
    QUERIES,
    Axes,
    Family,
    GgufNames,
    common_structure,
    linear,
    norm,
    sub_layer,
)
from slm_ray.records.architecture import Structure

Norms = tuple[str | None, str | None]


def llama_like(
    model_type: str,
    stem: str,
    structure: Callable[[Any], Structure] = common_structure,
    *,
    norms: Norms = ("input_layernorm", "post_attention_layernorm"),
    post_norms: Norms = (None, None),
    qk_norms: tuple[Axes, Axes] = ((None,), (None,)),
    experts: bool = False,
    **changes: Any,
) -> Family:
    """A family with Llama's tensor names; ``norms`` stand before attention and MLP, ``post_norms`` behind them.

    ``experts``: Each MLP is a mixture, with a router ``mlp.gate`` and all experts in two tensors.
    """
    attention = {
        **linear("self_attn.q_proj", QUERIES, HIDDEN),
        **linear("self_attn.k_proj", KEYS, HIDDEN),
        **linear("self_attn.v_proj", KEYS, HIDDEN),
        **linear("self_attn.o_proj", HIDDEN, QUERIES),
        "self_attn.q_norm.weight": qk_norms[0],
        "self_attn.k_norm.weight": qk_norms[1],
    }
    mlp = {
        **linear("mlp.gate_proj", NEURONS, HIDDEN),
        **linear("mlp.up_proj", NEURONS, HIDDEN),
        **linear("mlp.down_proj", HIDDEN, NEURONS),
    }
    down = "mlp.down_proj"
    if experts:
        down = "mlp.experts.down_proj"
        mlp = {
            "mlp.gate.weight": (NEURONS, HIDDEN),
            "mlp.experts.gate_up_proj": (NEURONS, None, HIDDEN),
            down: (NEURONS, HIDDEN, None),
        }
    mlp_names = sub_layer("mlp", norms[1], down, mlp, post_norms[1])
    fields: dict[str, Any] = {
        "model_type": model_type,
        "stem": stem,
        "embedding": "model.embed_tokens.weight",
        "final_norm": "model.norm",
        "global_tensors": {
            "model.embed_tokens.weight": (None, HIDDEN), **norm("model.norm"), HEAD: (None, HIDDEN),
        },
        "attention": sub_layer("self_attn", norms[0], "self_attn.o_proj", attention, post_norms[0]),
        "mlp": replace(mlp_names, experts="mlp.experts" if experts else None),
        "structure": structure,
    }  # fmt: skip
    return Family(**{**fields, **changes})


LLAMA = llama_like(
    "llama", "SlmRayLlama", heads_divide_width=True, gguf=GgufNames("llama", per_layer="deci", pairs=True)
)
