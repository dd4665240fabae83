"""Llama with per-layer sizes."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .modeling_slm_ray import PerLayerConfig, PerLayerModel, register_classes


@strict
class SlmRayLlamaConfig(PerLayerConfig, LlamaConfig):
    """Llama's config with per-layer sizes."""

    model_type = "slm_ray_llama"


class _PerLayerLlama(PerLayerModel):
    config_class = SlmRayLlamaConfig

    @staticmethod
    def build_layer(config: Any, index: int, cache_index: int) -> nn.Module:
        layer = LlamaDecoderLayer(config, index)
        layer.self_attn.layer_idx = cache_index
        return layer


class SlmRayLlamaModel(_PerLayerLlama, LlamaModel):
    """Llama's layers without an output head."""


class SlmRayLlamaForCausalLM(_PerLayerLlama, LlamaForCausalLM):
    """Llama's causal language model."""


class SlmRayLlamaForSequenceClassification(_PerLayerLlama, LlamaForSequenceClassification):
    """Llama with a classification head."""


register_classes(SlmRayLlamaConfig, SlmRayLlamaModel, SlmRayLlamaForCausalLM, SlmRayLlamaForSequenceClassification)
