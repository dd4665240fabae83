"""GPT-NeoX with per-layer sizes and a head width of its own."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    attention_name = ("attention", "input_layernorm")

    @classmethod
    def build_layer(cls, config: Any, index: int) -> nn.Module:
        """A layer whose heads are ``head_dim`` wide, however many there are."""
        layer = GPTNeoXLayer(config, index)
        attention, inner = layer.attention, config.num_attention_heads * config.head_dim
        attention.head_size = config.head_dim
        attention.rotary_ndims = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        attention.scaling = config.head_dim**-0.5
        attention.query_key_value = nn.Linear(config.hidden_size, 3 * inner, bias=config.attention_bias)
        attention.dense = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)
        return layer


SlmRayGPTNeoXConfig, SlmRayGPTNeoXModel, SlmRayGPTNeoXForCausalLM, SlmRayGPTNeoXForSequenceClassification = (
    student_classes(__name__, "SlmRayGPTNeoX", GPTNeoXConfig, _Layers)
)
