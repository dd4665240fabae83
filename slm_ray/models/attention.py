"""Causal attention on a processor: blocks of queries against the keys that they see, as plain products.

PyTorch's fused kernel for processors works in small tiles, and multiplies bf16 hardly faster than fp32. Plain products
of 128 queries with all keys up to the last of them take 0.45 of its time forwards and backwards in bf16, 0.75 in fp32
(9 heads of 64, 512 tokens, AVX-512 BF16), for memory of half the square of the length.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from slm_ray.models.lm_head import spans

BLOCKED = "slm_ray_blocked"
_QUERIES = 128
_LONGEST = 1024  # tokens; beyond, all probabilities would take too much memory


def blocked_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as transformers calls it; what is not plainly causal, or long, goes to the fused kernel.

    Args:
        module: The attention layer.
        query: ``[batch, heads, tokens, width]``.
        key: ``[batch, key-value heads, tokens, width]``.
        value: As ``key``.
        attention_mask: None where attention is causal and nothing else.
        scaling: Of the scores; ``width ** -0.5`` by default.
        kwargs: Passed on.

    Returns:
        ``[batch, tokens, heads, width]``, and None.
    """
    tokens = query.shape[2]
    is_plain = attention_mask is None and kwargs.get("position_bias") is None
    if not is_plain or not 1 < tokens == key.shape[2] <= _LONGEST:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    unseen = query.new_full((tokens, tokens), float("-inf")).triu(1)
    parts = []
    for rows in spans(tokens, _QUERIES):
        seen = slice(0, min(rows.stop, tokens))
        scores = query[:, :, rows] @ key[:, :, seen].transpose(-1, -2) + unseen[rows, seen]
        parts.append(scores.softmax(-1) @ value[:, :, seen])
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(BLOCKED, blocked_attention)
AttentionMaskInterface.register(BLOCKED, sdpa_mask)
