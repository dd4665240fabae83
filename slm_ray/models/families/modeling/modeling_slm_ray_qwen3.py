"""Qwen3 with per-layer sizes."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .modeling_slm_ray import PerLayerConfig, PerLayerModel, register_classes


@strict
class SlmRayQwen3Config(PerLayerConfig, Qwen3Config):
    """Qwen3's config with per-layer sizes."""

    model_type = "slm_ray_qwen3"


class _PerLayerQwen3(PerLayerModel):
    config_class = SlmRayQwen3Config

    @staticmethod
    def build_layer(config: Any, index: int, cache_index: int) -> nn.Module:
        layer = Qwen3DecoderLayer(config, index)
        layer.self_attn.layer_idx = cache_index
        return layer


class SlmRayQwen3Model(_PerLayerQwen3, Qwen3Model):
    """Qwen3's layers without an output head."""


class SlmRayQwen3ForCausalLM(_PerLayerQwen3, Qwen3ForCausalLM):
    """Qwen3's causal language model."""


class SlmRayQwen3ForSequenceClassification(_PerLayerQwen3, Qwen3ForSequenceClassification):
    """Qwen3 with a classification head."""


register_classes(SlmRayQwen3Config, SlmRayQwen3Model, SlmRayQwen3ForCausalLM, SlmRayQwen3ForSequenceClassification)
