"""Phi-3 and Phi-4: Llama with one projection for queries, keys and values, and one for gates and ups."""

from __future__ import annotations

from slm_ray.models.families.base import GATE_UP, HIDDEN, NEURONS, QKV_STACKED, QUERIES, linear, sub_layer
from slm_ray.models.families.llama import llama_like

PHI3 = llama_like(
    "phi3",
    "SlmRayPhi3",
    free_head_dim=False,
    attention=sub_layer(
        "self_attn",
        "input_layernorm",
        "self_attn.o_proj",
        {**linear("self_attn.qkv_proj", QKV_STACKED, HIDDEN), **linear("self_attn.o_proj", HIDDEN, QUERIES)},
    ),
    mlp=sub_layer(
        "mlp",
        "post_attention_layernorm",
        "mlp.down_proj",
        {**linear("mlp.gate_up_proj", GATE_UP, HIDDEN), **linear("mlp.down_proj", HIDDEN, NEURONS)},
    ),
)
