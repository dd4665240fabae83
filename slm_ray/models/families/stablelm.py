"""StableLM: Llama with LayerNorm and rotary positions on a part of each head."""

from __future__ import annotations

from typing import Any

from slm_ray.models.families.base import common_structure
from slm_ray.models.families.llama import llama_like
from slm_ray.records.architecture import Structure


def _structure(config: Any) -> Structure:
    return common_structure(config, qkv_bias=bool(config.use_qkv_bias), norm_bias=True)


def _refuses(config: Any) -> str | None:
    if config.qk_layernorm:
        return "a norm of its own for every query and key head (qk_layernorm)"
    return "one norm for attention and MLP (use_parallel_residual)" if config.use_parallel_residual else None


STABLELM = llama_like("stablelm", "SlmRayStableLm", _structure, free_head_dim=False, refuses=_refuses)
