"""Cross-entropy and distillation from hidden states, with gradients made while the logits are there.

A chunk of tokens is multiplied with the whole output head; blocks of its rows that fit the processor's cache are turned
from logits into the derivative of the loss, in place; and the chunk is multiplied back, onto the hidden states and the
head. So logits are made once, read once and gone, as in Liger's fused losses (arXiv 2410.10989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from slm_ray.distill.blocks import Objective, Workspace, losses_and_gradient
from slm_ray.distill.outcomes import Targets
from slm_ray.distill.signal import DenseSignal, TeacherSignal
from slm_ray.models.lm_head import spans

# Logits of one chunk. More make the multiplications faster, until the processor's rate is reached.
_CHUNK_LOGITS = {"cpu": 3 << 23, "cuda": 1 << 27}
# Logits of one block: on a CPU per thread, so that the buffers lie in the cache of its core.
_BLOCK_LOGITS = {"cpu": 6 << 16, "cuda": 1 << 24}
_HEAD_SLICE = 2048  # words whose gradients are added up in fp32 at once
_ROWS_BACK = 256  # with more rows, oneDNN's bf16 product with a tall matrix takes twice as long


class Sums(NamedTuple):
    """Weighted sums over tokens: cross-entropy and divergence (0 without one)."""

    ce: torch.Tensor
    kd: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """All but the student: what its losses are taken against. Every token counts.

    Attributes:
        targets: ``[tokens]`` token ids.
        weights: ``[tokens]``.
        signal: What the teacher says, or None.
    """

    targets: torch.Tensor
    weights: torch.Tensor
    signal: TeacherSignal | None


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the loss, still to be multiplied by ``scale``; None where not wanted.

    Attributes:
        hidden: ``[tokens, hidden]``.
        head: ``[vocabulary, hidden]``.
        scale: The greatest weight. Gradients are made with weights up to 1, so that small ones stay in fp16's range.
    """

    hidden: torch.Tensor | None
    head: torch.Tensor | None
    scale: torch.Tensor


def chunk_rows(num_tokens: int, vocab_size: int, device: torch.device) -> tuple[int, int]:
    """Tokens in a chunk, never all of them, and in a block of a chunk."""
    place = "cpu" if device.type == "cpu" else "cuda"
    threads = torch.get_num_threads() if place == "cpu" else 1
    chunk = max(1, min(_CHUNK_LOGITS[place] // vocab_size, -(-num_tokens // 2)))
    return chunk, max(1, min(_BLOCK_LOGITS[place] * threads // vocab_size, chunk))


class _Logits:
    """Logits of consecutive tokens, in one buffer that the next ones overwrite."""

    def __init__(self, hidden: torch.Tensor, head: torch.Tensor, most: int) -> None:
        self._hidden, self._head = hidden, head.to(hidden.dtype)
        self._buffer = hidden.new_empty(most, len(head))

    def __getitem__(self, part: slice) -> torch.Tensor:
        rows = self._hidden[part]
        return torch.mm(rows, self._head.T, out=self._buffer[: len(rows)])


def run_chunks(
    hidden: torch.Tensor, head: torch.Tensor, batch: Batch, objective: Objective, wanted: tuple[bool, bool]
) -> tuple[Sums, Gradients]:
    """Losses and gradients of all tokens, a chunk at a time.

    Args:
        hidden: ``[tokens, hidden]``, in the type to multiply in.
        head: ``[vocabulary, hidden]``, of the same type.
        batch: Targets, weights and the teacher's signal, which is there if the objective has a divergence.
        objective: What is minimised.
        wanted: Whether gradients of hidden states and of the head are wanted.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    chunk, block = chunk_rows(len(hidden), len(head), hidden.device)
    student = _Logits(hidden, head, chunk)
    teacher = _teacher(batch.signal, objective, exact, chunk)
    workspace = Workspace(block, len(head), exact, hidden.device)
    weights = batch.weights.to(exact)
    scale = weights.abs().max() if len(weights) else weights.new_ones(())
    hidden_gradient = torch.empty_like(hidden, dtype=exact) if wanted[0] else None
    head_gradient = torch.zeros_like(head, dtype=exact) if wanted[1] else None
    ce, kd = torch.zeros_like(weights), torch.zeros_like(weights)
    for part in spans(len(hidden), chunk):
        logits, teacher_part = student[part], None if teacher is None else teacher[part]
        for rows in spans(len(logits), block):
            at = slice(part.start + rows.start, part.start + rows.stop)
            teacher_rows = None if teacher_part is None else teacher_part[rows]
            ce[at], kd[at] = losses_and_gradient(
                logits[rows], batch.targets[at], teacher_rows, objective, workspace, any(wanted)
            )
        share = (weights[part] / scale)[:, None]
        if hidden_gradient is not None:
            for rows in spans(len(logits), _ROWS_BACK):
                hidden_gradient[part][rows] = (logits[rows] @ head) * share[rows]
        if head_gradient is not None:
            _add_product(head_gradient, logits, (hidden[part] * share).to(hidden.dtype))
    return Sums(weights @ ce, weights @ kd), Gradients(hidden_gradient, head_gradient, scale)


def _teacher(
    signal: TeacherSignal | None, objective: Objective, exact: torch.dtype, most: int
) -> _Logits | Targets | None:
    """What to compare with: sliced by tokens, the teacher's logits or its sparse targets."""
    if signal is None or objective.divergence is None:
        return None
    if isinstance(signal, DenseSignal):
        return _Logits(signal.hidden, signal.head, most)
    return Targets.of(signal, objective.divergence.temperature, exact)


def _add_product(total: torch.Tensor, logits: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add ``logits.T @ hidden`` to a sum that may be of a more exact type."""
    if total.dtype == logits.dtype:
        total.addmm_(logits.T, hidden)
        return
    for words in spans(len(total), _HEAD_SLICE):
        total[words].add_(logits[:, words].T @ hidden)


class FusedLoss(torch.autograd.Function):
    """The weighted sum of both losses over tokens, for one backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, batch: Batch, objective: Objective
    ) -> tuple[torch.Tensor, ...]:
        """Losses and, where wanted, gradients: the loss, and the sums it is made of (without gradient)."""
        same = head.to(hidden.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            sums, ctx.gradients = run_chunks(hidden, same, batch, objective, ctx.needs_input_grad[:2])
        ctx.types = hidden.dtype, head.dtype
        ctx.mark_non_differentiable(*sums)
        return objective.ce_weight * sums.ce + objective.kd_weight * sums.kd, *sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale what the forward pass made, in place: a head's gradient is too large to copy."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of causal_lm_loss can be taken once: call it again for another one")
        factor = upstream * gradients.scale
        scaled = [
            None if gradient is None else gradient.mul_(factor).to(dtype)
            for gradient, dtype in zip((gradients.hidden, gradients.head), ctx.types, strict=True)
        ]
        return *scaled, None, None
