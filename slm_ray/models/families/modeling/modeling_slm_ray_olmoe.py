"""OLMoE with per-layer sizes and a head width of its own."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeDecoderLayer, OlmoeRMSNorm

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    @classmethod
    def build_layer(cls, config: Any, index: int) -> nn.Module:
        """A layer whose norms of queries and keys are as wide as its heads."""
        layer = OlmoeDecoderLayer(config, index)
        attention, width = layer.self_attn, config.head_dim
        attention.q_norm = OlmoeRMSNorm(config.num_attention_heads * width, eps=config.rms_norm_eps)
        attention.k_norm = OlmoeRMSNorm(config.num_key_value_heads * width, eps=config.rms_norm_eps)
        return layer


SlmRayOlmoeConfig, SlmRayOlmoeModel, SlmRayOlmoeForCausalLM, SlmRayOlmoeForSequenceClassification = student_classes(
    __name__, "SlmRayOlmoe", OlmoeConfig, _Layers
)
