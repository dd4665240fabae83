"""Qwen3: Llama with a norm on each query and key head, and heads that need not fill the width."""

from __future__ import annotations

from typing import Any

from slm_ray.models.families.base import common_structure
from slm_ray.models.families.llama import llama_like
from slm_ray.records.architecture import Structure


def _structure(config: Any) -> Structure:
    bias = bool(config.attention_bias)
    return common_structure(config, qkv_bias=bias, attention_output_bias=bias, qk_norm=True)


QWEN3 = llama_like("qwen3", "SlmRayQwen3", _structure)
