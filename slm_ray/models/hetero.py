"""Students whose layers differ in size: Llama, Qwen2, Qwen3, GPT-NeoX and GPT-2 with per-layer heads and neurons.

This file stands alone: it is copied beside the weights of every such student, so that
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works where slm_ray is not installed. It needs
only torch and transformers. Sizes come from the ``per_layer_config`` field of config.json (transformers 5): a layer may
override ``num_attention_heads``, ``num_key_value_heads`` and ``intermediate_size`` (GPT-2: ``n_inner``), and ``skip``
its ``attention`` or its ``mlp``.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.pytorch_utils import Conv1D

_FILE = "modeling_slm_ray.py"


# Not called "...Attention": transformers would take it for a kernel written by hand, and refuse to switch kernels.
class SkippedHeads(nn.Module):
    """Stands where a layer keeps no attention; adds nothing to the residual stream and caches nothing."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Zeros, shaped like the input ``[batch, sequence, hidden]``, and no attention weights."""
        return torch.zeros_like(hidden_states), None


class SkippedNeurons(nn.Module):
    """Stands where a layer keeps no neurons; adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zeros, shaped like the input ``[batch, sequence, hidden]``."""
        return torch.zeros_like(hidden_states)


class _PerLayer:
    """What the five configs share: sizes are checked layer by layer by the model, not against one global head count."""

    def validate_architecture(self) -> None:
        """Heads need not divide the hidden size here: ``head_dim`` is a field of its own."""


@strict
class SlmRayLlamaConfig(_PerLayer, LlamaConfig):
    """Llama with per-layer sizes."""

    model_type = "slm_ray_llama"


@strict
class SlmRayQwen2Config(_PerLayer, Qwen2Config):
    """Qwen2 with per-layer sizes."""

    model_type = "slm_ray_qwen2"


@strict
class SlmRayQwen3Config(_PerLayer, Qwen3Config):
    """Qwen3 with per-layer sizes."""

    model_type = "slm_ray_qwen3"


@strict
class SlmRayGPTNeoXConfig(_PerLayer, GPTNeoXConfig):
    """GPT-NeoX with per-layer sizes and a head width of its own."""

    model_type = "slm_ray_gpt_neox"


@strict
class SlmRayGPT2Config(_PerLayer, GPT2Config):
    """GPT-2 with per-layer sizes and a head width of its own."""

    model_type = "slm_ray_gpt2"


def _plain(config: Any, **changes: Any) -> Any:
    """A copy of a config without per-layer overrides, changed as asked."""
    plain = copy.copy(config)
    plain.__dict__.pop("_heterogeneity_spec", None)
    for name, value in changes.items():
        setattr(plain, name, value)
    return plain


def _layer_configs(config: Any) -> list[tuple[Any, frozenset[str]]]:
    """Per layer: a config with that layer's sizes, and the sub-layers it skips."""
    layers = []
    for index in range(config.num_hidden_layers):
        layer = config.per_layer_config[index]
        layers.append((_plain(layer), frozenset(getattr(layer, "skip", None) or ())))
    return layers


def _llama_like(layer_class: type) -> Callable[[Any, int, int], nn.Module]:
    """Builder for families whose attention already takes ``head_dim`` from the config."""

    def build(config: Any, index: int, cache_index: int) -> nn.Module:
        layer = layer_class(config, index)
        layer.self_attn.layer_idx = cache_index
        return layer

    return build


def _neox_layer(config: Any, index: int, cache_index: int) -> nn.Module:
    """A GPT-NeoX layer whose heads are ``head_dim`` wide, however many there are."""
    layer = GPTNeoXLayer(config, index)
    attention, inner = layer.attention, config.num_attention_heads * config.head_dim
    attention.head_size = config.head_dim
    attention.rotary_ndims = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
    attention.scaling = config.head_dim**-0.5
    attention.query_key_value = nn.Linear(config.hidden_size, 3 * inner, bias=config.attention_bias)
    attention.dense = nn.Linear(inner, config.hidden_size, bias=config.attention_bias)
    attention.layer_idx = cache_index
    return layer


def _gpt2_layer(config: Any, index: int, cache_index: int) -> nn.Module:
    """A GPT-2 block whose heads are ``head_dim`` wide; the optional 1/(layer + 1) scale keeps the teacher's layer."""
    heads, inner = config.num_attention_heads, config.num_attention_heads * config.head_dim
    layer = GPT2Block(_plain(config, num_attention_heads=1), index)
    attention = layer.attn
    attention.num_heads, attention.head_dim, attention.split_size = heads, config.head_dim, inner
    attention.scaling = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        attention.scaling /= float(config.source_layers[index] + 1)
    attention.c_attn = Conv1D(3 * inner, config.hidden_size)
    attention.c_proj = Conv1D(config.hidden_size, inner)
    attention.layer_idx = cache_index
    return layer


class _HeterogeneousCausalLM:
    """Builds the family's own model with no layers, then gives it layers of differing sizes.

    Attention modules are numbered among themselves, so that a key-value cache works where the first layer (whose length
    transformers asks for) keeps no attention.
    """

    build_layer: ClassVar[Any]  # (this layer's config, its number, its number among attentions) -> module
    list_name: ClassVar[str] = "layers"
    attention_name: ClassVar[tuple[str, str]] = ("self_attn", "input_layernorm")
    mlp_name: ClassVar[tuple[str, str]] = ("mlp", "post_attention_layernorm")
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(_plain(config, num_hidden_layers=0))  # type: ignore[call-arg]
        base = self.base_model  # type: ignore[attr-defined]
        # One config object for the model and every attention module, so that they agree on the kernel for good.
        config._attn_implementation = self.config._attn_implementation
        layers, num_attentions = [], 0
        for index, (layer_config, skipped) in enumerate(_layer_configs(config)):
            layer = type(self).build_layer(layer_config, index, num_attentions)
            if "attention" in skipped:
                self._skip(layer, self.attention_name, SkippedHeads())
            else:
                getattr(layer, self.attention_name[0]).config = config
                num_attentions += 1
            if "mlp" in skipped:
                self._skip(layer, self.mlp_name, SkippedNeurons())
            layers.append(layer)
        setattr(base, self.list_name, nn.ModuleList(layers))
        self.config = base.config = config
        self.post_init()  # type: ignore[attr-defined]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save with this file beside the weights, whoever saves: the folder loads where slm_ray is not installed."""
        module = _FILE.removesuffix(".py")
        classes = {"AutoConfig": type(self.config), "AutoModelForCausalLM": type(self)}
        self.config.auto_map = {auto: f"{module}.{cls.__name__}" for auto, cls in classes.items()}
        os.makedirs(save_directory, exist_ok=True)
        shutil.copyfile(__file__, os.path.join(save_directory, _FILE))
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]

    @staticmethod
    def _skip(layer: nn.Module, names: tuple[str, str], stand_in: nn.Module) -> None:
        setattr(layer, names[0], stand_in)
        setattr(layer, names[1], nn.Identity())


class SlmRayLlamaForCausalLM(_HeterogeneousCausalLM, LlamaForCausalLM):
    """Llama with per-layer sizes."""

    config_class = SlmRayLlamaConfig
    build_layer = staticmethod(_llama_like(LlamaDecoderLayer))


class SlmRayQwen2ForCausalLM(_HeterogeneousCausalLM, Qwen2ForCausalLM):
    """Qwen2 with per-layer sizes."""

    config_class = SlmRayQwen2Config
    build_layer = staticmethod(_llama_like(Qwen2DecoderLayer))


class SlmRayQwen3ForCausalLM(_HeterogeneousCausalLM, Qwen3ForCausalLM):
    """Qwen3 with per-layer sizes."""

    config_class = SlmRayQwen3Config
    build_layer = staticmethod(_llama_like(Qwen3DecoderLayer))


class SlmRayGPTNeoXForCausalLM(_HeterogeneousCausalLM, GPTNeoXForCausalLM):
    """GPT-NeoX with per-layer sizes."""

    config_class = SlmRayGPTNeoXConfig
    build_layer = staticmethod(_neox_layer)
    attention_name = ("attention", "input_layernorm")


class SlmRayGPT2LMHeadModel(_HeterogeneousCausalLM, GPT2LMHeadModel):
    """GPT-2 with per-layer sizes."""

    config_class = SlmRayGPT2Config
    build_layer = staticmethod(_gpt2_layer)
    list_name = "h"
    attention_name = ("attn", "ln_1")
    mlp_name = ("mlp", "ln_2")
