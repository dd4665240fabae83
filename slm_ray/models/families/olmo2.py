"""OLMo 2: Llama with norms behind its sub-layers, none before them, and one norm each over all queries and all keys.

Where heads go, these norms take their statistics over the heads that stay, as norms do over the channels that stay.
"""

from __future__ import annotations

from functools import partial

from slm_ray.models.families.base import KEYS, QUERIES, common_structure
from slm_ray.models.families.llama import llama_like

OLMO2 = llama_like(
    "olmo2",
    "SlmRayOlmo2",
    partial(common_structure, qk_norm=True, qk_norm_over_heads=True),
    norms=(None, None),
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    qk_norms=((QUERIES,), (KEYS,)),
)
