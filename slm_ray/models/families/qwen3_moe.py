"""Qwen3's mixtures: Qwen3 with experts in place of every MLP."""

from __future__ import annotations

from typing import Any

from slm_ray.models.families.base import common_structure
from slm_ray.models.families.llama import llama_like
from slm_ray.records.architecture import Structure


def _structure(config: Any) -> Structure:
    return common_structure(
        config, qk_norm=True, expert_size=int(config.moe_intermediate_size),
        experts_per_token=int(config.num_experts_per_tok),
    )  # fmt: skip


def _refuses(config: Any) -> str | None:
    mixed = config.mlp_only_layers or config.decoder_sparse_step != 1
    return "layers without experts between those with" if mixed else None


QWEN3_MOE = llama_like(
    "qwen3_moe",
    "SlmRayQwen3Moe",
    _structure,
    experts=True,
    intermediate_size=lambda config: int(config.num_experts),
    intermediate_field="num_experts",
    refuses=_refuses,
)
