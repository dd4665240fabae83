"""Qwen3: Llama with a norm on each query and key head, and heads that need not fill the width."""

from __future__ import annotations

from functools import partial

from slm_ray.models.families.base import GgufNames, common_structure
from slm_ray.models.families.llama import llama_like

QWEN3 = llama_like("qwen3", "SlmRayQwen3", partial(common_structure, qk_norm=True), gguf=GgufNames("qwen3"))
