"""Granite: Llama with factors on embeddings, attention scores, what sub-layers add, and logits.

The factors on embeddings and on attention are applied by its plain class, whatever a student's sizes are.
"""

from __future__ import annotations

from slm_ray.models.families.llama import llama_like

GRANITE = llama_like(
    "granite",
    "SlmRayGranite",
    residual_scale=lambda config: float(config.residual_multiplier),
    logit_scale=lambda config: 1 / config.logits_scaling,
)
