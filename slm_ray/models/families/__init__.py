"""The families that slm_ray knows, and which of them a config belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from slm_ray.config.errors import UserError
from slm_ray.models.families.base import (
    FULL_ATTENTION,
    GATE_UP,
    HEAD,
    HIDDEN,
    KEYS,
    NEURONS,
    QKV_PER_HEAD,
    QKV_STACKED,
    QUERIES,
    SLIDING_ATTENTION,
    STUDENT_PREFIX,
    Axes,
    Family,
    SubLayerNames,
)
from slm_ray.models.families.gemma import GEMMA2, GEMMA3
from slm_ray.models.families.gpt2 import GPT2
from slm_ray.models.families.gpt_neox import GPT_NEOX
from slm_ray.models.families.granite import GRANITE
from slm_ray.models.families.llama import LLAMA
from slm_ray.models.families.mistral import MINISTRAL, MISTRAL
from slm_ray.models.families.mixtral import MIXTRAL
from slm_ray.models.families.olmo2 import OLMO2
from slm_ray.models.families.olmoe import OLMOE
from slm_ray.models.families.phi3 import PHI3
from slm_ray.models.families.positions import (
    LEARNED,
    POSITION_KINDS,
    POSITIONS,
    ROTARY,
    scratch_family,
    scratch_structure,
)
from slm_ray.models.families.qwen2 import QWEN2
from slm_ray.models.families.qwen3 import QWEN3
from slm_ray.models.families.qwen3_moe import QWEN3_MOE
from slm_ray.models.families.smollm3 import SMOLLM3
from slm_ray.models.families.stablelm import STABLELM
from slm_ray.records.architecture import Architecture

__all__ = [
    "FAMILIES", "GATE_UP", "HEAD", "HIDDEN", "KEYS", "LEARNED", "NEURONS", "POSITION_KINDS", "QKV_PER_HEAD",
    "QKV_STACKED", "QUERIES", "ROTARY", "Axes", "Family", "SubLayerNames", "base_family", "check_model_type",
    "config_architecture", "context_length", "family_of", "scratch_family", "scratch_structure",
]  # fmt: skip

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        GEMMA2, GEMMA3, GPT2, GPT_NEOX, GRANITE, LLAMA, MINISTRAL, MISTRAL, MIXTRAL, OLMO2, OLMOE, PHI3, POSITIONS,
        QWEN2, QWEN3, QWEN3_MOE, SMOLLM3, STABLELM,
    )
}  # fmt: skip


# Fields that any config may have, and what older ones call fields that are named otherwise today.
_OF_ANY_CONFIG = {
    "_name_or_path", "architectures", "auto_map", "dtype", "model_type", "rope_scaling", "rope_theta", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip


def base_family(config: Any) -> Family | None:
    """The family that a plain config or a student's belongs to; None where it is not one of ours."""
    kind = config.model_type
    return FAMILIES.get(kind) or FAMILIES.get(kind.removeprefix(STUDENT_PREFIX))


def config_architecture(config: Any) -> Architecture | None:
    """The sizes of the model of a config, plain or a student's; None where its family is not declared."""
    family = base_family(config)
    return None if family is None else family.architecture(config)


def context_length(config: Any) -> int | None:
    """The most positions that a config allows; None where it sets no end."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def _nearest(model_type: str, fields: Mapping[str, Any]) -> str:
    """The supported family whose config knows most of these fields, and the fields that it does not know."""
    told = {name for name, value in fields.items() if value not in (None, False, 0, [], {})} - _OF_ANY_CONFIG

    def strange(family: Family) -> list[str]:
        plain = family.plain_config_class()
        return sorted(told - set(plain.__dataclass_fields__) - set(plain.attribute_map))

    def distance(family: Family) -> tuple[int, float]:
        return len(strange(family)), -SequenceMatcher(None, family.model_type, model_type).ratio()

    family = min((known for known in FAMILIES.values() if known.can_teach), key=distance)
    missing = strange(family)
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"the nearest is {family.model_type}" + (f", without {', '.join(missing[:3])}{more}" if missing else "")


def check_model_type(name: str, model_type: str, fields: Mapping[str, Any] | None = None) -> Family:
    """The family of a teacher's ``model_type``; ``fields`` of its config tell what does not fit."""
    family = FAMILIES.get(model_type) or FAMILIES.get(model_type.removeprefix(STUDENT_PREFIX))
    if family is None or not family.can_teach:
        supported = ", ".join(sorted(name for name, known in FAMILIES.items() if known.can_teach))
        raise UserError(
            f"{name} is of the family '{model_type}', which is not supported: use a teacher of one of {supported} "
            f"({_nearest(model_type, fields or {})}), or declare the family (docs/adding_a_family.md)"
        )
    return family


def family_of(config: Any, name: str) -> Family:
    """The family of a teacher's config."""
    family = check_model_type(name, config.model_type)
    kinds = sorted(set(family.attention_kinds(config)) - {FULL_ATTENTION, SLIDING_ATTENTION})
    refused = f"layers of {', '.join(kinds)}" if kinds else family.refuses(config)
    if refused:
        raise UserError(f"{name} has {refused}, which is not supported in family '{family.model_type}': use another")
    if getattr(config, "add_cross_attention", False):
        raise UserError(f"{name} is a decoder with cross-attention: use a decoder-only language model")
    if config.model_type == family.student_type and not family.architecture(config).is_uniform:
        raise UserError(
            f"{name} is a student whose layers differ in size, which cannot be a teacher: give its own teacher, or a "
            "student from a space with model-wide sizes (coarse, fine_uniform, depth)"
        )
    return family
