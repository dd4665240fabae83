"""The elementwise part of the losses, on so few rows of logits at a time that they stay in the processor's cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slm_ray.distill.divergences import Divergence, Slope, Softmax
from slm_ray.distill.outcomes import OutcomeSlope, Targets, outcome_slope

_NUM_BUFFERS = 5


@dataclass(frozen=True)
class Objective:
    """What is minimised at every token: ``ce_weight * ce + kd_weight * kd``; without ``divergence`` no ``kd``."""

    ce_weight: float
    kd_weight: float
    divergence: Divergence | None


class Workspace:
    """Buffers for the rows of one block, allocated once."""

    def __init__(self, num_rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = num_rows, vocab_size
        self._buffers = [torch.empty(shape, dtype=dtype, device=device) for _ in range(_NUM_BUFFERS)]

    def take(self, num_rows: int) -> tuple[torch.Tensor, ...]:
        """The buffers, ``[num_rows, vocabulary]`` each."""
        return tuple(buffer[:num_rows] for buffer in self._buffers)


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
    workspace: Workspace,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses of some tokens, and the derivative of their weighted sum, which is written over the logits.

    Args:
        logits: ``[rows, vocabulary]`` the student's, of any floating type.
        targets: ``[rows]`` token ids.
        teacher: The teacher's logits, ``[rows, vocabulary]``, or its sparse targets, or None.
        objective: What is minimised.
        workspace: Room for as many rows, in the type that sums are made in.
        with_gradient: Whether to write the gradient; otherwise the logits are left as they are.

    Returns:
        Cross-entropy and divergence (times the square of the temperature; 0 without one), ``[rows]`` each, in nats.
    """
    shifted, exp, tempered_exp, teacher_shifted, teacher_exp = workspace.take(len(logits))
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
    student = plain
    if temperature != 1:
        torch.exp(shifted.mul_(1 / temperature), out=tempered_exp)
        student = Softmax(shifted, tempered_exp, tempered_exp.sum(-1, keepdim=True))
    factor = objective.kd_weight * temperature  # T^2 of the value times 1/T of the student's own division
    if isinstance(teacher, Targets):
        found: Slope | OutcomeSlope = outcome_slope(objective.divergence, student, teacher)
    else:
        teacher_rows = _softmax(teacher, teacher_shifted, teacher_exp, temperature)
        found = objective.divergence.slope(student, teacher_rows)
    if with_gradient:
        if student is plain:
            exp.mul_(share + factor * found.own)
        else:
            exp.mul_(share).addcmul_(tempered_exp, factor * found.own)
        if isinstance(found, OutcomeSlope):
            at_ids = factor * found.at_ids
            if student is plain:  # then the cross-entropy's part was taken out too
                at_ids += share * found.taken
            exp.scatter_add_(1, found.ids, at_ids)
        else:
            exp.addcmul_(found.rows, factor * found.other)
        _finish(logits, exp, wanted, objective)
    return ce[:, 0], found.value[:, 0] * temperature**2


def _finish(logits: torch.Tensor, gradient: torch.Tensor, wanted: torch.Tensor, objective: Objective) -> None:
    """Take the targets' own part off and write the gradient over the logits."""
    gradient.scatter_add_(1, wanted, torch.full_like(wanted, -objective.ce_weight, dtype=gradient.dtype))
    logits.copy_(gradient)
