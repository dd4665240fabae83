"""Mistral: Llama whose attention may slide over a window; Ministral, where some layers' attention does."""

from __future__ import annotations

from slm_ray.models.families.base import GgufNames
from slm_ray.models.families.llama import llama_like

MISTRAL = llama_like("mistral", "SlmRayMistral", gguf=GgufNames("llama", per_layer="deci", pairs=True))
MINISTRAL = llama_like("ministral", "SlmRayMinistral")
