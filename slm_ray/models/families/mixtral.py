"""Mixtral: Llama with a mixture of experts in place of every MLP."""

from __future__ import annotations

from typing import Any

from slm_ray.models.families.base import common_structure
from slm_ray.models.families.llama import llama_like
from slm_ray.records.architecture import Structure


def _structure(config: Any) -> Structure:
    return common_structure(
        config, expert_size=int(config.intermediate_size), experts_per_token=int(config.num_experts_per_tok)
    )


MIXTRAL = llama_like(
    "mixtral",
    "SlmRayMixtral",
    _structure,
    experts=True,
    intermediate_size=lambda config: int(config.num_local_experts),
    intermediate_field="num_local_experts",
)
