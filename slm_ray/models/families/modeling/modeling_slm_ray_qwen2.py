"""Qwen2 with per-layer sizes."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from .modeling_slm_ray import PerLayerConfig, PerLayerModel, register_classes


@strict
class SlmRayQwen2Config(PerLayerConfig, Qwen2Config):
    """Qwen2's config with per-layer sizes."""

    model_type = "slm_ray_qwen2"


class _PerLayerQwen2(PerLayerModel):
    config_class = SlmRayQwen2Config

    @staticmethod
    def build_layer(config: Any, index: int, cache_index: int) -> nn.Module:
        layer = Qwen2DecoderLayer(config, index)
        layer.self_attn.layer_idx = cache_index
        return layer


class SlmRayQwen2Model(_PerLayerQwen2, Qwen2Model):
    """Qwen2's layers without an output head."""


class SlmRayQwen2ForCausalLM(_PerLayerQwen2, Qwen2ForCausalLM):
    """Qwen2's causal language model."""


class SlmRayQwen2ForSequenceClassification(_PerLayerQwen2, Qwen2ForSequenceClassification):
    """Qwen2 with a classification head."""


register_classes(SlmRayQwen2Config, SlmRayQwen2Model, SlmRayQwen2ForCausalLM, SlmRayQwen2ForSequenceClassification)
