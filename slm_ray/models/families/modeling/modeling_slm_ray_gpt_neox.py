"""GPT-NeoX with per-layer sizes and a head width of its own."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXForSequenceClassification, GPTNeoXModel
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from .modeling_slm_ray import PerLayerConfig, PerLayerModel, register_classes


@strict
class SlmRayGPTNeoXConfig(PerLayerConfig, GPTNeoXConfig):
    """GPT-NeoX's config with per-layer sizes."""

    model_type = "slm_ray_gpt_neox"


class _PerLayerGPTNeoX(PerLayerModel):
    config_class = SlmRayGPTNeoXConfig
    attention_name = ("attention", "input_layernorm")

    @staticmethod
    def build_layer(config: Any, index: int, cache_index: int) -> nn.Module:
        """A layer whose heads are ``head_dim`` wide, however many there are."""
        layer = GPTNeoXLayer(config, index)
        attention, inner = layer.attention, config.num_attention_heads * config.head_dim
        attention.head_size = config.head_dim
        attention.rotary_ndims = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        attention.scaling = config.head_dim**-0.5
        attention.query_key_value = nn.Linear(config.hidden_size, 3 * inner, bias=config.attention_bias)
        attention.dense = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)
        attention.layer_idx = cache_index
        return layer


class SlmRayGPTNeoXModel(_PerLayerGPTNeoX, GPTNeoXModel):
    """GPT-NeoX's layers without an output head."""


class SlmRayGPTNeoXForCausalLM(_PerLayerGPTNeoX, GPTNeoXForCausalLM):
    """GPT-NeoX's causal language model."""


class SlmRayGPTNeoXForSequenceClassification(_PerLayerGPTNeoX, GPTNeoXForSequenceClassification):
    """GPT-NeoX with a classification head."""


register_classes(
    SlmRayGPTNeoXConfig, SlmRayGPTNeoXModel, SlmRayGPTNeoXForCausalLM, SlmRayGPTNeoXForSequenceClassification
)
