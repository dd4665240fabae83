"""A Llama whose residual stream was rotated and cut, block by block: what SliceGPT (arXiv 2401.15024) leaves.

Norms have no scale (it went into the matrices behind them) and still divide by the teacher's width, for the cut-off
directions would have added to the mean. Every sub-layer's skip connection passes a matrix, because the stream has other
directions before and after it. Importing this module makes transformers know the class.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


@strict
class SlicedLlamaConfig(LlamaConfig):
    """Llama's config with ``norm_width``, the teacher's hidden size, and ``head_rotation``.

    ``head_rotation``: the output head is the token embedding, reached through one more matrix.
    """

    model_type = "peers_sliced_llama"

    def validate_architecture(self) -> None:
        """Heads need not divide the hidden size here."""


class WideNorm(nn.Module):
    """RMSNorm without a scale over a stream of which only some directions are kept."""

    def __init__(self, width: int, eps: float) -> None:
        """Set up.

        Args:
            width: Directions of the whole stream, by which the sum of squares is divided.
            eps: Added to that mean.
        """
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``[..., kept]``."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.width + self.eps)).to(x.dtype)


class SlicedLayer(LlamaDecoderLayer):
    """A Llama layer with a matrix in each skip connection."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        """Build it with empty weights of the config's sizes."""
        super().__init__(config, layer_idx)
        self.input_layernorm = WideNorm(config.norm_width, config.rms_norm_eps)
        self.post_attention_layernorm = WideNorm(config.norm_width, config.rms_norm_eps)
        self.attention_skip = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.mlp_skip = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The stream ``[batch, sequence, kept]`` behind this layer, in the next one's directions."""
        added, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = self.attention_skip(hidden_states) + added
        return self.mlp_skip(hidden_states) + self.mlp(self.post_attention_layernorm(hidden_states))


class SlicedLlamaForCausalLM(LlamaForCausalLM):
    """The whole model."""

    config_class = SlicedLlamaConfig

    def __init__(self, config: Any) -> None:
        """Build it with random weights of the config's sizes."""
        super().__init__(config)
        self.model.layers = nn.ModuleList(SlicedLayer(config, index) for index in range(config.num_hidden_layers))
        norm: list[nn.Module] = [WideNorm(config.norm_width, config.rms_norm_eps)]
        if config.head_rotation:
            norm.append(nn.Linear(config.hidden_size, config.hidden_size, bias=False))
        self.model.norm = nn.Sequential(*norm)
        self.post_init()


AutoConfig.register(SlicedLlamaConfig.model_type, SlicedLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(SlicedLlamaConfig, SlicedLlamaForCausalLM, exist_ok=True)
