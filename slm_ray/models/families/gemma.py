"""Gemma 2 and 3, text: a norm before and behind every sub-layer, scaled embeddings, local and global layers.

Norms multiply by one plus their weight. Gemma 2 caps logits, its own and those of attention. Gemma 3 normalises each
query and key head, and its local layers have a rotary base of their own. The plain classes scale embeddings by the root
of the width, so a student of another width keeps the ratio in its embedding (``extraction.extract``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from slm_ray.models.families.base import Family, common_structure
from slm_ray.models.families.llama import llama_like


def _refuses(config: Any) -> str | None:
    return "attention that looks ahead (use_bidirectional_attention)" if config.use_bidirectional_attention else None


def _gemma(model_type: str, stem: str, *, qk_norm: bool) -> Family:
    return llama_like(
        model_type,
        stem,
        partial(common_structure, qk_norm=qk_norm, norms_per_sub_layer=2),
        norms=("input_layernorm", "pre_feedforward_layernorm"),
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        heads_divide_width=True,
        embedding_scale=lambda config: config.hidden_size**0.5,
        logit_cap=lambda config: config.final_logit_softcapping,
        norm_offset=1.0,
        refuses=_refuses,
    )


GEMMA2 = _gemma("gemma2", "SlmRayGemma2", qk_norm=False)
GEMMA3 = _gemma("gemma3_text", "SlmRayGemma3", qk_norm=True)
