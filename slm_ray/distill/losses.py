"""The loss of pretraining with a teacher's help, from final hidden states: the one function that trainers call.

A chunk of tokens is multiplied with the whole output head; blocks of its rows that fit the processor's cache are turned
from logits into the derivative of the loss, in place; and the chunk is multiplied back, onto the hidden states and the
head. So logits are made once, read once and gone, as in Liger's fused losses (arXiv 2410.10989).

Teacher and student may have different numbers of rows for one tokenizer, as vocabularies are padded. The cross-entropy
is over all rows of the student. The divergence is over the ``n`` rows that both have, with both distributions
renormalised over them: ``p_i = exp(v_i) / sum_{j<n} exp(v_j)`` and ``q_i = exp(u_i) / sum_{j<n} exp(u_j)``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from slm_ray.config.errors import UserError
from slm_ray.distill.divergences import Divergence, OutcomeSlope, Slope, Softmax, Targets, outcome_slope
from slm_ray.distill.signal import DenseSignal, TeacherSignal
from slm_ray.models.lm_head import capped, spans

_NUM_BUFFERS = 5
# Logits of one chunk. More make the multiplications faster, until the processor's rate is reached.
_CHUNK_LOGITS = {"cpu": 3 << 23, "cuda": 1 << 27}
# Logits of one block: on a CPU per thread, so that the buffers lie in the cache of its core.
_BLOCK_LOGITS = {"cpu": 6 << 16, "cuda": 1 << 24}
_HEAD_SLICE = 2048  # ids whose gradients are added up in fp32 at once
_ROWS_BACK = 256  # with more rows, oneDNN's bf16 product with a tall matrix takes twice as long


@dataclass(frozen=True)
class LossParts:
    """A loss and what it is made of."""

    loss: torch.Tensor  # Scalar, ``sum(weights * (ce_weight * ce + kd_weight * kd))``; differentiable once
    ce: torch.Tensor  # Scalar, the weighted mean cross-entropy, in nats per token; detached. 0 if no token counts.
    # Scalar, the weighted mean divergence, times the square of the temperature; detached. None without a ``kd_weight``.
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
    cap: float | None = None,
) -> LossParts:
    """Next-token cross-entropy and a divergence from the teacher, from one computation of the student's logits.

    No tensor of tokens x vocabulary is made, for student or teacher. Gradients are computed with the loss (where grad
    mode is on and they are needed) and only scaled in the backward pass, which can be run once.

    ``hidden``: ``[tokens, hidden]`` the student's final hidden states, fp32, bf16, fp16 or fp64. Multiplications are in
    this type, sums in fp32 or better. ``head``: ``[vocabulary, hidden]`` its output head, which may be the embedding;
    of any floating type. ``targets``: ``[tokens]`` int64, the next token's id; anything where the weight is 0.
    ``weights``: ``[tokens]``, mask and normalisation in one: 1/n at n tokens makes the loss a mean. On a CPU tokens of
    weight 0 are not computed at all, and targets are checked. ``cap``: What the student's logits are capped to.

    Raises:
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

    if targets.device.type == "cpu":  # elsewhere the host would wait for each of these values
        counted = weights.nonzero()[:, 0]
        if len(counted) < num_tokens:
            hidden, targets, weights = hidden[counted], targets[counted], weights[counted]
            signal = signal and signal.rows(counted)
        if len(counted) and not (0 <= int(targets.min()) and int(targets.max()) < vocab_size):
            raise UserError(
                f"every target must be an id that the student has a row for, 0 to {vocab_size - 1:,}, but they are "
                f"{int(targets.min()):,} to {int(targets.max()):,}: use text prepared with the student's tokenizer"
            )
    objective = Objective(float(ce_weight), float(kd_weight), divergence, cap)
    loss, ce, kd = FusedLoss.apply(hidden, head, Batch(targets, weights, signal), objective)
    total = weights.sum().to(loss.dtype)
    share = torch.where(total == 0, 0.0, 1 / total)
    return LossParts(loss, ce * share, kd * share if divergence else None)


@dataclass(frozen=True)
class Objective:
    """What is minimised at every token: ``ce_weight * ce + kd_weight * kd``; without ``divergence`` no ``kd``."""

    ce_weight: float
    kd_weight: float
    divergence: Divergence | None
    cap: float | None = None  # of the student's logits


def _softmax(logits: torch.Tensor, shifted: torch.Tensor, exp: torch.Tensor, temperature: float) -> Softmax:
    """The softmax of rows, in the buffers ``shifted`` and ``exp``."""
    shifted.copy_(logits)
    shifted.sub_(shifted.amax(-1, keepdim=True))
    if temperature != 1:
        shifted.mul_(1 / temperature)
    torch.exp(shifted, out=exp)
    return Softmax(shifted, exp, exp.sum(-1, keepdim=True))


def losses_and_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher: torch.Tensor | Targets | None,
    objective: Objective,
    buffers: list[torch.Tensor],
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses of some tokens, and the derivative of their weighted sum, which is written over the logits.

    ``logits``: ``[rows, vocabulary]`` the student's, of any floating type. ``targets``: ``[rows]`` token ids.
    ``buffers``: Five of ``[rows or more, vocabulary]``.
    ``teacher``: The teacher's logits, ``[rows, shared]`` (the student's first ids), its sparse targets, or None.
    Returns cross-entropy and divergence (times the square of the temperature; 0 without one), ``[rows]`` each, in nats.
    """
    shifted, exp, tempered_exp, teacher_shifted, teacher_exp = (buffer[: len(logits)] for buffer in buffers)
    plain = _softmax(logits, shifted, exp, 1.0)
    wanted = targets[:, None]
    ce = plain.total.log() - shifted.gather(1, wanted)
    share = objective.ce_weight / plain.total  # of the exponentials in the gradient
    if objective.divergence is None or teacher is None:
        if with_gradient:
            exp.mul_(share)
            _finish(logits, exp, wanted, objective)
        return ce[:, 0], torch.zeros_like(ce[:, 0])

    temperature = objective.divergence.temperature
    student, shared = plain, teacher.num_rows if isinstance(teacher, Targets) else teacher.shape[1]
    is_whole = shared == logits.shape[1]
    if temperature != 1 or not is_whole:
        shifted, tempered_exp = shifted[:, :shared], tempered_exp[:, :shared]
        if not is_whole:
            shifted.sub_(shifted.amax(-1, keepdim=True))
        torch.exp(shifted.mul_(1 / temperature), out=tempered_exp)
        student = Softmax(shifted, tempered_exp, tempered_exp.sum(-1, keepdim=True))
    factor = objective.kd_weight * temperature  # T^2 of the value times 1/T of the student's own division
    if isinstance(teacher, Targets):
        found: Slope | OutcomeSlope = outcome_slope(objective.divergence, student, teacher)
    else:
        teacher_rows = _softmax(teacher, teacher_shifted[:, :shared], teacher_exp[:, :shared], temperature)
        found = objective.divergence.slope(student, teacher_rows)
    if with_gradient:
        if student is plain:
            exp.mul_(share + factor * found.own)
        else:
            exp.mul_(share)[:, :shared].addcmul_(tempered_exp, factor * found.own)
        if isinstance(found, OutcomeSlope):
            at_ids = factor * found.at_ids
            if student is plain:  # then the cross-entropy's part was taken out too
                at_ids += share * found.taken
            exp.scatter_add_(1, found.ids, at_ids)
        else:
            exp[:, :shared].addcmul_(found.rows, factor * found.other)
        _finish(logits, exp, wanted, objective)
    return ce[:, 0], found.value[:, 0] * temperature**2


def _finish(logits: torch.Tensor, gradient: torch.Tensor, wanted: torch.Tensor, objective: Objective) -> None:
    """Take the targets' own part off and write the gradient over the logits."""
    gradient.scatter_add_(1, wanted, torch.full_like(wanted, -objective.ce_weight, dtype=gradient.dtype))
    if objective.cap is not None:
        gradient.mul_(1 - (logits.to(gradient.dtype) / objective.cap).square())
    logits.copy_(gradient)


@dataclass(frozen=True)
class Batch:
    """All but the student: what its losses are taken against. Every token counts."""

    targets: torch.Tensor  # ``[tokens]`` token ids
    weights: torch.Tensor  # ``[tokens]``
    signal: TeacherSignal | None  # The teacher's signal, or None


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the loss, still to be multiplied by ``scale``; None where not wanted."""

    hidden: torch.Tensor | None  # ``[tokens, hidden]``
    head: torch.Tensor | None  # ``[vocabulary, hidden]``
    # The greatest weight. Gradients are made with weights up to 1, so that small ones stay in fp16's range.
    scale: torch.Tensor


def chunk_rows(num_tokens: int, vocab_size: int, device: torch.device) -> tuple[int, int]:
    """Tokens in a chunk, never all of them, and in a block of a chunk."""
    place = "cpu" if device.type == "cpu" else "cuda"
    threads = torch.get_num_threads() if place == "cpu" else 1
    chunk = max(1, min(_CHUNK_LOGITS[place] // vocab_size, -(-num_tokens // 2)))
    return chunk, max(1, min(_BLOCK_LOGITS[place] * threads // vocab_size, chunk))


class _Logits:
    """Logits of consecutive tokens, in one buffer that the next ones overwrite."""

    def __init__(self, hidden: torch.Tensor, head: torch.Tensor, most: int, cap: float | None) -> None:
        self._hidden, self._head, self._cap = hidden, head.to(hidden.dtype), cap
        self._buffer = hidden.new_empty(most, len(head))

    def __getitem__(self, part: slice) -> torch.Tensor:
        rows = self._hidden[part]
        return capped(torch.mm(rows, self._head.T, out=self._buffer[: len(rows)]), self._cap)


def run_chunks(
    hidden: torch.Tensor, head: torch.Tensor, batch: Batch, objective: Objective, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor, torch.Tensor, Gradients]:
    """Weighted sums of cross-entropy and divergence over all tokens, and gradients, a chunk at a time.

    ``hidden``: ``[tokens, hidden]``, in the type to multiply in. ``head``: ``[vocabulary, hidden]``, of the same type.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    chunk, block = chunk_rows(len(hidden), len(head), hidden.device)
    student = _Logits(hidden, head, chunk, objective.cap)
    teacher = _teacher(batch.signal, len(head), objective, exact, chunk)
    buffers = [torch.empty(block, len(head), dtype=exact, device=hidden.device) for _ in range(_NUM_BUFFERS)]
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
                logits[rows], batch.targets[at], teacher_rows, objective, buffers, any(wanted)
            )
        share = (weights[part] / scale)[:, None]
        if hidden_gradient is not None:
            for rows in spans(len(logits), _ROWS_BACK):
                hidden_gradient[part][rows] = (logits[rows] @ head) * share[rows]
        if head_gradient is not None:
            _add_product(head_gradient, logits, (hidden[part] * share).to(hidden.dtype))
    return weights @ ce, weights @ kd, Gradients(hidden_gradient, head_gradient, scale)


def _teacher(
    signal: TeacherSignal | None, num_rows: int, objective: Objective, exact: torch.dtype, most: int
) -> _Logits | Targets | None:
    """What to compare with, of the first ``num_rows`` ids: sliced by tokens, the teacher's logits or its targets."""
    if signal is None or objective.divergence is None:
        return None
    if isinstance(signal, DenseSignal):
        return _Logits(signal.hidden, signal.head[:num_rows], most, signal.cap)
    return Targets.of(signal, min(signal.num_rows or num_rows, num_rows), objective.divergence.temperature, exact)


def _add_product(total: torch.Tensor, logits: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add ``logits.T @ hidden`` to a sum that may be of a more exact type."""
    if total.dtype == logits.dtype:
        total.addmm_(logits.T, hidden)
        return
    for ids in spans(len(total), _HEAD_SLICE):
        total[ids].add_(logits[:, ids].T @ hidden)


class FusedLoss(torch.autograd.Function):
    """The weighted sum of both losses over tokens, for one backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, batch: Batch, objective: Objective
    ) -> tuple[torch.Tensor, ...]:
        """Losses and, where wanted, gradients: the loss, and the sums it is made of (without gradient)."""
        same = head.to(hidden.dtype)
        kind = hidden.device.type
        off = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()
        with off:
            ce, kd, ctx.gradients = run_chunks(hidden, same, batch, objective, ctx.needs_input_grad[:2])
        ctx.types = hidden.dtype, head.dtype
        ctx.mark_non_differentiable(ce, kd)
        return objective.ce_weight * ce + objective.kd_weight * kd, ce, kd

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
