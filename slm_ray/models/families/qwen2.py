"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from __future__ import annotations

from slm_ray.models.families.base import GgufNames, common_structure
from slm_ray.models.families.llama import llama_like

QWEN2 = llama_like("qwen2", "SlmRayQwen2", lambda config: common_structure(config, qkv_bias=True),
                   gguf=GgufNames("qwen2"))  # fmt: skip
