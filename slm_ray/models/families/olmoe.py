"""OLMoE: a mixture of many small experts, with one norm each over all queries and all keys."""

from __future__ import annotations

from typing import Any

from slm_ray.models.families.base import KEYS, QUERIES, common_structure
from slm_ray.models.families.llama import llama_like
from slm_ray.records.architecture import Structure


def _structure(config: Any) -> Structure:
    return common_structure(
        config, qk_norm=True, qk_norm_over_heads=True, expert_size=int(config.intermediate_size),
        experts_per_token=int(config.num_experts_per_tok),
    )  # fmt: skip


OLMOE = llama_like(
    "olmoe",
    "SlmRayOlmoe",
    _structure,
    qk_norms=((QUERIES,), (KEYS,)),
    experts=True,
    intermediate_size=lambda config: int(config.num_experts),
    intermediate_field="num_experts",
    free_head_dim=False,
)
