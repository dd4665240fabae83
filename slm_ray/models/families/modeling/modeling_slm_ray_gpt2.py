"""GPT-2 with per-layer sizes and a head width of its own."""

from __future__ import annotations

import copy
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from .modeling_slm_ray import PerLayerConfig, PerLayerModel, register_classes


@strict
class SlmRayGPT2Config(PerLayerConfig, GPT2Config):
    """GPT-2's config with per-layer sizes."""

    model_type = "slm_ray_gpt2"


class _PerLayerGPT2(PerLayerModel):
    config_class = SlmRayGPT2Config
    layers_name = "h"
    attention_name = ("attn", "ln_1")
    mlp_name = ("mlp", "ln_2")

    @staticmethod
    def build_layer(config: Any, index: int, cache_index: int) -> nn.Module:
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
        attention.layer_idx = cache_index
        return layer


class SlmRayGPT2Model(_PerLayerGPT2, GPT2Model):
    """GPT-2's blocks without an output head."""


class SlmRayGPT2ForCausalLM(_PerLayerGPT2, GPT2LMHeadModel):
    """GPT-2's causal language model."""


class SlmRayGPT2ForSequenceClassification(_PerLayerGPT2, GPT2ForSequenceClassification):
    """GPT-2 with a classification head."""


register_classes(SlmRayGPT2Config, SlmRayGPT2Model, SlmRayGPT2ForCausalLM, SlmRayGPT2ForSequenceClassification)
