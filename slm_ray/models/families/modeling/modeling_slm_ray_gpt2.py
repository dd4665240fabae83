"""GPT-2 with per-layer sizes and a head width of its own."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from .modeling_slm_ray import PerLayerModel, student_classes


class _Layers(PerLayerModel):
    layers_name = "h"
    attention_name = ("attn", "ln_1")
    mlp_name = ("mlp", "ln_2")

    @classmethod
    def build_layer(cls, config: Any, index: int) -> nn.Module:
        """A block whose heads are ``head_dim`` wide; the optional 1/(layer + 1) scale keeps the teacher's layer."""
        heads, inner = config.num_attention_heads, config.num_attention_heads * config.head_dim
        one_head = copy.copy(config)
        one_head.num_attention_heads = 1
        layer = GPT2Block(one_head, index)
        attention = layer.attn
        attention.num_heads, attention.head_dim, attention.split_size = heads, config.head_dim, inner
        attention.scaling = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            attention.scaling /= float(config.source_layers[index] + 1)
        attention.c_attn = Conv1D(3 * inner, config.hidden_size)
        attention.c_proj = Conv1D(config.hidden_size, inner)
        return layer


SlmRayGPT2Config, SlmRayGPT2Model, SlmRayGPT2ForCausalLM, SlmRayGPT2ForSequenceClassification = student_classes(
    __name__, "SlmRayGPT2", GPT2Config, _Layers
)
