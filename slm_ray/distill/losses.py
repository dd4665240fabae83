"""The loss of pretraining with a teacher's help, from final hidden states: the one function that trainers call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slm_ray.config.errors import UserError
from slm_ray.distill.blocks import Objective
from slm_ray.distill.config import DIVERGENCES
from slm_ray.distill.divergences import Divergence
from slm_ray.distill.fused import Batch, FusedLoss
from slm_ray.distill.signal import DenseSignal, SparseSignal, TeacherSignal

__all__ = [
    "DIVERGENCES",
    "DenseSignal",
    "Divergence",
    "LossParts",
    "SparseSignal",
    "TeacherSignal",
    "causal_lm_loss",
]


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of.

    Attributes:
        loss: Scalar, ``sum(weights * (ce_weight * ce + kd_weight * kd))``; differentiable once.
        ce: Scalar, the weighted mean cross-entropy, in nats per token; detached. 0 if no token counts.
        kd: Scalar, the weighted mean divergence, times the square of the temperature; detached. None without a
            ``kd_weight``.
    """

    loss: torch.Tensor
    ce: torch.Tensor
    kd: torch.Tensor | None


def causal_lm_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    ce_weight: float = 1.0,
    kd_weight: float = 0.0,
    signal: TeacherSignal | None = None,
    divergence: Divergence | None = None,
) -> LossParts:
    """Next-token cross-entropy and a divergence from the teacher, from one computation of the student's logits.

    No tensor of tokens x vocabulary is made, for student or teacher. Gradients are computed with the loss (where grad
    mode is on and they are needed) and only scaled in the backward pass, which can be run once.

    Args:
        hidden: ``[tokens, hidden]`` the student's final hidden states, fp32, bf16, fp16 or fp64. Multiplications are in
            this type, sums in fp32 or better.
        head: ``[vocabulary, hidden]`` its output head, which may be the embedding; of any floating type.
        targets: ``[tokens]`` int64, the next token's id; anything where the weight is 0.
        weights: ``[tokens]``, mask and normalisation in one: 1/n at n tokens makes the loss a mean. Tokens of weight 0
            are not computed at all.
        ce_weight: Factor of the cross-entropy.
        kd_weight: Factor of the divergence. At 0 the signal is not looked at.
        signal: What the teacher says at each of the tokens.
        divergence: How far the student is from it is measured; forward KL at temperature 1 if not given.

    Returns:
        The loss and its parts.

    Raises:
        UserError: The vocabularies differ, or the divergence cannot be used with the signal.
        ValueError: Shapes do not go together, or there is a ``kd_weight`` and no signal.
    """
    num_tokens, vocab_size = len(hidden), len(head)
    if hidden.dim() != 2 or head.shape[1:] != hidden.shape[1:] or not targets.shape == weights.shape == (num_tokens,):
        raise ValueError(
            "hidden [tokens, d], head [vocabulary, d], targets [tokens] and weights [tokens] must go together, not "
            f"{list(hidden.shape)}, {list(head.shape)}, {list(targets.shape)} and {list(weights.shape)}"
        )
    if kd_weight:
        if signal is None:
            raise ValueError("a kd_weight needs a teacher's signal")
        divergence = divergence or Divergence()
        divergence.check_signal(signal)
        signal.check(num_tokens, vocab_size)
    else:
        signal = divergence = None

    counted = weights.nonzero()[:, 0]
    if len(counted) < num_tokens:
        hidden, targets, weights = hidden[counted], targets[counted], weights[counted]
        signal = signal and signal.rows(counted)
    if len(counted) and not (0 <= int(targets.min()) and int(targets.max()) < vocab_size):
        raise UserError(
            f"every target must be a word of the student's vocabulary, ids 0 to {vocab_size - 1:,}, but they are "
            f"{int(targets.min()):,} to {int(targets.max()):,}: use text prepared with the student's tokenizer"
        )
    objective = Objective(float(ce_weight), float(kd_weight), divergence)
    loss, ce, kd = FusedLoss.apply(hidden, head, Batch(targets, weights, signal), objective)
    total = weights.sum().to(loss.dtype)
    share = torch.where(total == 0, 0.0, 1 / total)
    return LossParts(loss, ce * share, kd * share if divergence else None)
