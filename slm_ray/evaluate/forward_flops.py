"""FLOPs of a model's forward pass: from its sizes where we know the family, else counted by torch as it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slm_ray.models.families import config_architecture
from slm_ray.records.cost import flops_per_token

SIZES, COUNTED = "sizes", "counted by torch"


@torch.no_grad()
def counted_flops(model: Any, ids: torch.Tensor, **options: Any) -> int:
    """Matrix-multiplication FLOPs of one forward pass, counted as it runs.

    Args:
        model: A causal language model.
        ids: ``[batch, length]``.
        options: More arguments of the forward pass.
    """
    # The plain kernel: torch has no count of the fused one for processors.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids, use_cache=False, **options)
    return int(counter.get_total_flops())


def token_flops(model: Any, ids: torch.Tensor) -> tuple[float, str]:
    """FLOPs per token of a forward pass that gives the logits of every token, and how they are known.

    Args:
        model: A causal language model.
        ids: ``[1, length]``: the length that attention is counted at.
    """
    architecture = config_architecture(model.config)
    if architecture is not None:
        return float(flops_per_token(architecture, ids.shape[1])), SIZES
    return counted_flops(model, ids) / ids.shape[1], COUNTED


def reading_flops(model: Any, ids: torch.Tensor, *, last_only: bool) -> float:
    """FLOPs of reading a batch of prompts.

    Args:
        model: A causal language model.
        ids: ``[batch, length]``.
        last_only: Only the last token's logits are made.
    """
    architecture = config_architecture(model.config)
    batch, length = ids.shape
    if architecture is None:
        return batch * counted_flops(model, ids[:1], **({"logits_to_keep": 1} if last_only else {}))
    head = 2 * architecture.structure.vocab_size * architecture.hidden_size
    saved = (length - 1) * head if last_only else 0
    return float(batch * (length * flops_per_token(architecture, length) - saved))
