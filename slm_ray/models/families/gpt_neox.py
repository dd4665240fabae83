"""GPT-NeoX (Pythia): one projection for queries, keys and values, head by head; sub-layers often run in parallel."""

from __future__ import annotations

from typing import Any

from slm_ray.models.families.base import (
    HEAD,
    HIDDEN,
    NEURONS,
    QKV_PER_HEAD,
    QUERIES,
    Family,
    SubLayerNames,
    common_structure,
    linear,
    norm,
)
from slm_ray.records.architecture import Structure


def _structure(config: Any) -> Structure:
    bias = bool(config.attention_bias)
    return common_structure(
        config, gated_mlp=False, qkv_bias=bias, attention_output_bias=bias, mlp_bias=True, norm_bias=True
    )


_ATTENTION = {
    **norm("input_layernorm"),
    **linear("attention.query_key_value", QKV_PER_HEAD, HIDDEN),
    **linear("attention.dense", HIDDEN, QUERIES),
}
_MLP = {
    **norm("post_attention_layernorm"),
    **linear("mlp.dense_h_to_4h", NEURONS, HIDDEN),
    **linear("mlp.dense_4h_to_h", HIDDEN, NEURONS),
}

GPT_NEOX = Family(
    model_type="gpt_neox",
    stem="SlmRayGPTNeoX",
    base="gpt_neox",
    embedding="gpt_neox.embed_in.weight",
    final_norm="gpt_neox.final_layer_norm",
    global_tensors={
        "gpt_neox.embed_in.weight": (None, HIDDEN),
        **norm("gpt_neox.final_layer_norm"),
        HEAD: (None, HIDDEN),
    },
    attention=SubLayerNames(
        module="attention", norm="input_layernorm", output="attention.dense", tensors=_ATTENTION
    ),
    mlp=SubLayerNames(module="mlp", norm="post_attention_layernorm", output="mlp.dense_4h_to_h", tensors=_MLP),
    structure=_structure,
    free_head_dim=False,
    is_parallel=lambda config: bool(config.use_parallel_residual),
)  # fmt: skip
