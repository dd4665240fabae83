"""Models from scratch: Llamas with rotary positions, or with a learned table, ALiBi's biases or none."""

from __future__ import annotations

import dataclasses
from typing import Any

from slm_ray.models.families.base import HIDDEN, STUDENT_PREFIX, Family, common_structure
from slm_ray.models.families.llama import LLAMA
from slm_ray.records.architecture import Structure

ROTARY, LEARNED = "rotary", "learned"
POSITION_KINDS = (ROTARY, LEARNED, "alibi", "none")


def _structure(config: Any) -> Structure:
    """Llama's constants with the table of learned positions, where there is one."""
    rows = int(config.max_position_embeddings) if config.positions == LEARNED else 0
    return common_structure(config, learned_positions=rows)


POSITIONS = dataclasses.replace(
    LLAMA,
    model_type=f"{STUDENT_PREFIX}positions",
    stem="SlmRayPositions",
    structure=_structure,
    global_tensors={**LLAMA.global_tensors, "model.embed_positions.weight": (None, HIDDEN)},
    heads_divide_width=False,
    can_teach=False,
)


def scratch_family(positions: str) -> Family:
    """The family of models from scratch with one of ``POSITION_KINDS``."""
    return LLAMA if positions == ROTARY else POSITIONS


def scratch_structure(vocab_size: int, head_dim: int) -> Structure:
    """The constants of a model from scratch: rotary positions, tied embeddings, no biases."""
    return Structure(
        family=LLAMA.model_type, vocab_size=vocab_size, head_dim=head_dim, tie_word_embeddings=True, gated_mlp=True,
        qkv_bias=False, attention_output_bias=False, mlp_bias=False, norm_bias=False, qk_norm=False,
        learned_positions=0, output_head_bias=False, max_position_embeddings=2048,
    )  # fmt: skip
