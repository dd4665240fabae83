"""StableLM with per-layer sizes and a head width of its own."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import StableLmConfig
from transformers.models.stablelm.modeling_stablelm import StableLmDecoderLayer

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    @classmethod
    def build_layer(cls, config: Any, index: int) -> nn.Module:
        """A layer whose heads are ``head_dim`` wide, however many there are."""
        heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        one_head = copy.copy(config)
        one_head.num_attention_heads = one_head.num_key_value_heads = 1
        layer = StableLmDecoderLayer(one_head, index)
        attention = layer.self_attn
        attention.num_heads, attention.num_key_value_heads, attention.head_dim = heads, kv_heads, width
        attention.num_key_value_groups, attention.scaling = heads // kv_heads, width**-0.5
        attention.rotary_ndims = int(width * config.rope_parameters["partial_rotary_factor"])
        for name, count in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
            setattr(attention, name, nn.Linear(config.hidden_size, count * width, bias=config.use_qkv_bias))
        attention.o_proj = nn.Linear(heads * width, config.hidden_size, bias=False)
        return layer


SlmRayStableLmConfig, SlmRayStableLmModel, SlmRayStableLmForCausalLM, SlmRayStableLmForSequenceClassification = (
    student_classes(__name__, "SlmRayStableLm", StableLmConfig, _Layers)
)
