"""GPT-2: learned positions, weights stored as (in, out), and one stacked projection for queries, keys and values."""

from __future__ import annotations

from typing import Any

from slm_ray.models.families.base import (
    HEAD,
    HIDDEN,
    NEURONS,
    QKV_STACKED,
    QUERIES,
    Family,
    SubLayerNames,
    common_structure,
    conv1d,
    norm,
)
from slm_ray.records.architecture import Structure


def _structure(config: Any) -> Structure:
    return common_structure(
        config, gated_mlp=False, qkv_bias=True, attention_output_bias=True, mlp_bias=True, norm_bias=True,
        learned_positions=int(config.n_positions),
    )  # fmt: skip


GPT2 = Family(
    model_type="gpt2",
    stem="SlmRayGPT2",
    base="transformer",
    layers="h",
    embedding="transformer.wte.weight",
    final_norm="transformer.ln_f",
    global_tensors={
        "transformer.wte.weight": (None, HIDDEN),
        "transformer.wpe.weight": (None, HIDDEN),
        **norm("transformer.ln_f"),
        HEAD: (None, HIDDEN),
    },
    attention=SubLayerNames(
        module="attn", norm="ln_1", output="attn.c_proj",
        tensors={
            **norm("ln_1"), **conv1d("attn.c_attn", HIDDEN, QKV_STACKED), **conv1d("attn.c_proj", QUERIES, HIDDEN),
        },
    ),
    mlp=SubLayerNames(
        module="mlp", norm="ln_2", output="mlp.c_proj",
        tensors={**norm("ln_2"), **conv1d("mlp.c_fc", HIDDEN, NEURONS), **conv1d("mlp.c_proj", NEURONS, HIDDEN)},
    ),
    structure=_structure,
    intermediate_size=lambda config: int(config.n_inner or 4 * config.hidden_size),
    intermediate_field="n_inner",
    free_head_dim=False,
    scales_by_layer=lambda config: bool(config.scale_attn_by_inverse_layer_idx),
)  # fmt: skip
