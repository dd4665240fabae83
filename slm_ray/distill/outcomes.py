"""A divergence from a few of the teacher's words: those words, and one outcome for all the others together.

With ``k`` words there are ``k + 1`` outcomes for teacher and student alike. The student's last one has what its
softmax over the whole vocabulary leaves. Top-k and sampled targets give theirs nothing; with a tail bucket it has the
tail's mass, which makes it a coarsening of both distributions, whose divergence is never above the full one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from slm_ray.distill.divergences import Divergence, Softmax
from slm_ray.distill.signal import SparseSignal

# What counts as no probability: a logarithm stays finite there, and what is multiplied by it is 0 or of this size.
_FLOOR = 1e-30


@dataclass(frozen=True)
class Targets:
    """A sparse signal ready for use: every row sums to one.

    Attributes:
        ids: ``[tokens, k]`` int64.
        unused: ``[tokens, k]`` slots without a word.
        log_probs: ``[tokens, k + 1]``, the other words' outcome last; finite.
        probs: ``[tokens, k + 1]``, exactly 0 where there is nothing.
    """

    ids: torch.Tensor
    unused: torch.Tensor
    log_probs: torch.Tensor
    probs: torch.Tensor

    @classmethod
    def of(cls, signal: SparseSignal, temperature: float, dtype: torch.dtype) -> Targets:
        """Renormalise a signal, at a temperature that ``Divergence.check_signal`` allows."""
        log_probs = signal.log_probs.to(dtype)
        tail = signal.tail_log_mass
        last = log_probs.new_full((len(log_probs),), -torch.inf) if tail is None else tail.to(dtype)
        rows = torch.cat([log_probs, last[:, None]], 1) * (signal.temperature / temperature)
        rows = rows.log_softmax(-1)
        floor = torch.tensor(_FLOOR).log().item()
        return cls(signal.ids, log_probs.isneginf(), rows.clamp_min(floor), rows.exp())

    def __getitem__(self, part: slice) -> Targets:
        return Targets(self.ids[part], self.unused[part], self.log_probs[part], self.probs[part])


class OutcomeSlope(NamedTuple):
    """A divergence and its derivative by the student's logits: ``at_ids`` at the ids, ``own * student.exp`` elsewhere.

    Attributes:
        value: ``[rows, 1]``, in nats.
        own: ``[rows, 1]``.
        ids: ``[rows, k]``.
        at_ids: ``[rows, k]``, 0 in unused slots.
        taken: ``[rows, k]``, what ``student.exp`` was at the ids.
    """

    value: torch.Tensor
    own: torch.Tensor
    ids: torch.Tensor
    at_ids: torch.Tensor
    taken: torch.Tensor


def outcome_slope(divergence: Divergence, student: Softmax, targets: Targets) -> OutcomeSlope:
    """Value and derivative of a divergence from sparse targets.

    Args:
        divergence: Which.
        student: ``[rows, vocabulary]``; its exponentials at the ids become 0, so that the sum over the other words is
            exact even where they have next to nothing.
        targets: Of the same rows.
    """
    taken = student.exp.gather(1, targets.ids).masked_fill_(targets.unused, 0)
    shifted = student.shifted.gather(1, targets.ids)
    student.exp.scatter_add_(1, targets.ids, -taken)  # 0 is added for unused slots, whatever word they name
    rest = student.exp.sum(-1, keepdim=True)
    floored = rest.clamp_min(_FLOOR)
    outcomes = Softmax(
        torch.cat([shifted, floored.log()], 1),
        torch.cat([taken, rest], 1),
        student.total,
    )
    teacher = Softmax(targets.log_probs.clone(), targets.probs.clone(), torch.ones_like(rest))
    slope = divergence.slope(outcomes, teacher)
    change = slope.own * outcomes.exp + slope.other * slope.rows
    own = (change[:, -1:] / floored).masked_fill_(rest <= _FLOOR, 0)
    return OutcomeSlope(slope.value, own, targets.ids, change[:, :-1], taken)
