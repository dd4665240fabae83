"""Llama with another way of telling positions: a learned table, ALiBi's biases, or nothing at all.

Everything else (RMSNorm, SwiGLU, the projections) is transformers' own Llama, so models differ in their positions
alone; rotary positions are the plain ``LlamaForCausalLM``. It is copied beside the weights of every such model, as
students' modelling files are (modeling_slm_ray.py).
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaModel, LlamaPreTrainedModel

from .modeling_slm_ray import SavesCode, register_classes

LEARNED, ALIBI, NO_POSITIONS = "learned", "alibi", "none"
KINDS = (LEARNED, ALIBI, NO_POSITIONS)
# Where attention must not look. Its exponential is 0 in every type, and with scores added it is a number even in fp16,
# so that a row of padding, which may look nowhere, is no NaN.
_NOTHING = -3e4
# What transformers calls the key-value cache: newer versions say "cache", older ones "past_key_values".
_MASK_OPTIONS = inspect.signature(create_causal_mask).parameters
_CACHE = "cache" if "cache" in _MASK_OPTIONS else "past_key_values"
# A mask is wanted where a plain causal one would do, too: a static cache has more keys than there are tokens.
_WHOLE_MASK = {"allow_is_causal_skip": False} if "allow_is_causal_skip" in _MASK_OPTIONS else {}


@strict
class SlmRayPositionsConfig(LlamaConfig):
    """Llama's config with ``positions``: ``learned``, ``alibi`` or ``none``; ``rope_parameters`` mean nothing here.

    With ``learned``, ``max_position_embeddings`` is the number of rows of the table.
    """

    model_type = "slm_ray_positions"
    positions: str = NO_POSITIONS

    def validate_architecture(self) -> None:
        """Heads need not fill the hidden size; the kind of positions must be one of those in this file."""
        if self.positions not in KINDS:
            raise ValueError(f"positions must be one of {', '.join(KINDS)}, got '{self.positions}'")


class NoRotation(nn.Module):
    """Stands where Llama computes its rotations, and turns nothing: cosine 1 and sine 0 leave all as it is."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ones and zeros ``[1, 1, head_dim]``, for any position."""
        ones = torch.ones(1, 1, self.head_dim, dtype=x.dtype, device=x.device)
        return ones, torch.zeros_like(ones)


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head's bias (ALiBi, arXiv 2108.12409, section 3).

    For ``n`` heads, ``n`` a power of two, they are ``2^(-8/n), 2^(-16/n) ... 2^(-8)``. For any other number its authors
    take those of the power of two below, and then every other one of the power of two above.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (head + 1) / below) for head in range(below)]
    return slopes + [2.0 ** (-8 * (2 * head + 1) / (2 * below)) for head in range(num_heads - below)]


def alibi_mask(allowed: torch.Tensor | None, slopes: torch.Tensor, queries: torch.Tensor, keys: int) -> torch.Tensor:
    """What is added to attention's scores: minus slope times distance, or far less where it must not look.

    ``allowed``: ``[batch, 1, queries, keys]``: bool (True: may look), or something to be added; None: causal.
    ``slopes``: ``[heads]``, fp32. ``queries``: ``[queries]`` the places of the queries among the keys.
    """
    distance = queries[:, None] - torch.arange(keys, device=queries.device)  # within a document, places are positions
    bias = -slopes[:, None, None] * distance.clamp_min(0)
    allowed = (distance >= 0)[None, None] if allowed is None else allowed
    if allowed.dtype == torch.bool:
        return bias.masked_fill(~allowed, _NOTHING)
    return (bias + allowed).clamp_min(_NOTHING)


def positions_of(attention_mask: torch.Tensor | None, start: Any, like: torch.Tensor) -> torch.Tensor:
    """Positions ``[batch or 1, sequence]`` where none are given: from 0 at the first token that is not padding.

    ``attention_mask``: ``[batch, tokens seen]``, or None (or one prepared in another shape). ``like``: ``[batch,
    sequence, hidden]`` the inputs.
    """
    length = like.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
    return (torch.arange(length, device=like.device) + start).unsqueeze(0)


class SlmRayPositionsModel(SavesCode, LlamaModel):
    """Llama's layers between its embeddings and its final norm, with the positions of the config."""

    config: SlmRayPositionsConfig
    config_class = SlmRayPositionsConfig
    _supports_flash_attn = False  # ALiBi's biases differ by head, which those kernels take no mask for
    _supports_flex_attn = False

    def __init__(self, config: SlmRayPositionsConfig) -> None:
        super().__init__(config)
        self.rotary_emb = NoRotation(config.head_dim)
        if config.positions == LEARNED:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """As Llama's: takes ids or embeddings, positions within documents, padding and a cache.

        Raises:
            ValueError: Positions are learned, and one lies behind the last row of their table.
        """
        if self.config.positions == NO_POSITIONS:
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                inputs_embeds=inputs_embeds, **kwargs,
            )  # fmt: skip
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        seen = 0 if cache is None else cache.get_seq_length()
        if self.config.positions == ALIBI:
            attention_mask = self._biases(embeds, attention_mask, position_ids, cache, seen)
        else:
            if position_ids is None:
                position_ids = positions_of(attention_mask, seen, embeds)
            embeds = embeds + self._learned(position_ids)
        return super().forward(attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=embeds, **kwargs)

    def _learned(self, position_ids: torch.Tensor) -> torch.Tensor:
        rows = self.config.max_position_embeddings
        if not torch.compiler.is_compiling() and position_ids.numel() and int(position_ids.max()) >= rows:
            raise ValueError(
                f"position {int(position_ids.max())} is behind the last of this model's {rows} learned positions: give "
                f"it at most {rows} tokens"
            )
        return self.embed_positions(position_ids)

    def _biases(
        self, embeds: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None,
        cache: Any, seen: Any,
    ) -> torch.Tensor:  # fmt: skip
        allowed = create_causal_mask(
            config=self.config, inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids,
            **{_CACHE: cache}, **_WHOLE_MASK,
        )  # fmt: skip
        if allowed is not None and attention_mask is None and (position_ids is None or cache is not None):
            allowed = allowed[:1]  # nothing is padded or packed: one mask serves the whole batch
        length, device = embeds.shape[1], embeds.device
        slopes = torch.tensor(alibi_slopes(self.config.num_attention_heads), dtype=torch.float32, device=device)
        queries = torch.arange(length, device=device) + seen
        mask = alibi_mask(allowed, slopes, queries, length + seen if allowed is None else allowed.shape[-1])
        mixed = torch.is_autocast_enabled(device.type)
        return mask.to(torch.get_autocast_dtype(device.type) if mixed else embeds.dtype)  # once, not in every layer


class SlmRayPositionsForCausalLM(SavesCode, LlamaForCausalLM):
    """Llama's causal language model with the positions of the config."""

    config_class = SlmRayPositionsConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: SlmRayPositionsConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = SlmRayPositionsModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class SlmRayPositionsForSequenceClassification(SavesCode, LlamaForSequenceClassification):
    """Llama with the positions of the config and a classification head."""

    config_class = SlmRayPositionsConfig
    _supports_flash_attn = False
    _supports_flex_attn = False


register_classes(
    SlmRayPositionsConfig, SlmRayPositionsModel, SlmRayPositionsForCausalLM, SlmRayPositionsForSequenceClassification
)
