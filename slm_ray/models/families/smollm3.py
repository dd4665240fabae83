"""SmolLM3: Llama with no positions in every fourth layer."""

from __future__ import annotations

from slm_ray.models.families.llama import llama_like

SMOLLM3 = llama_like("smollm3", "SlmRaySmolLM3", per_layer_fields=("layer_types", "no_rope_layers"))
