"""Divergences between two rows of logits, in closed form: the value, and its derivative by the student's logits.

With ``u`` the student's logits, ``q = softmax(u)``, ``p`` the teacher's distribution and ``g_i = dD/dq_i``, the
derivative is ``dD/du_i = q_i (g_i - sum_j q_j g_j)``. Every divergence here writes it as ``own * exp(u) + other *
rows``, so that the caller can add it to the gradient of the cross-entropy, ``exp(u) / sum(exp(u)) - onehot``, in two
passes.

From sparse targets of ``k`` tokens there are ``k + 1`` outcomes, for teacher and student alike: those tokens, and all
the others together. The student's last outcome has what its softmax over the whole vocabulary leaves. Top-k and sampled
targets give theirs nothing; with a tail bucket it has the tail's mass, which makes it a coarsening of both
distributions, whose divergence is never above the full one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.distill.config import DIVERGENCES, check_loss
from slm_ray.distill.signal import SparseSignal, TeacherSignal

# What counts as no probability: a logarithm stays finite there, and what is multiplied by it is 0 or of this size.
_FLOOR = 1e-30


class Softmax(NamedTuple):
    """Rows of a distribution ``exp / total``, not multiplied out."""

    shifted: torch.Tensor  # ``[rows, outcomes]`` logits less anything that is constant in a row, at most about 0
    exp: torch.Tensor  # ``[rows, outcomes]`` their exponentials
    total: torch.Tensor  # ``[rows, 1]`` sums of the exponentials


class Slope(NamedTuple):
    """A divergence and its derivative by the student's logits, ``own * student.exp + other * rows``."""

    value: torch.Tensor  # ``[rows, 1]``, in nats
    own: torch.Tensor  # ``[rows, 1]``
    other: torch.Tensor  # ``[rows, 1]``
    rows: torch.Tensor  # ``[rows, outcomes]``


# All of them write over student.shifted, teacher.shifted and teacher.exp, which the caller has no more use for.


def _forward_kl(student: Softmax, teacher: Softmax) -> Slope:
    """``sum p log(p/q)``; derivative ``q - p``."""
    gaps = teacher.shifted.sub_(student.shifted).mul_(teacher.exp)
    value = gaps.sum(-1, keepdim=True) / teacher.total + student.total.log() - teacher.total.log()
    return Slope(value, 1 / student.total, -1 / teacher.total, teacher.exp)


def _soft_ce(student: Softmax, teacher: Softmax) -> Slope:
    """``-sum p log q``; derivative ``q - p``."""
    value = student.total.log() - student.shifted.mul_(teacher.exp).sum(-1, keepdim=True) / teacher.total
    return Slope(value, 1 / student.total, -1 / teacher.total, teacher.exp)


def _reverse_kl(student: Softmax, teacher: Softmax) -> Slope:
    """``D = sum q log(q/p)``; derivative ``q (log(q/p) - D)``."""
    rows = student.shifted.sub_(teacher.shifted).mul_(student.exp)
    gap = rows.sum(-1, keepdim=True) / student.total
    value = gap - student.total.log() + teacher.total.log()
    return Slope(value, -gap / student.total, 1 / student.total, rows)


def _symmetric(student: Softmax, teacher: Softmax) -> Slope:
    """Half of ``KL(p|q) + KL(q|p)``, in which the normalising constants cancel."""
    rows = student.shifted.sub_(teacher.shifted)
    expected = torch.mul(rows, teacher.exp, out=teacher.shifted).sum(-1, keepdim=True) / teacher.total
    rows.mul_(student.exp)
    gap = rows.sum(-1, keepdim=True) / student.total
    rows.div_(student.total).sub_(teacher.exp.div_(teacher.total))
    return Slope((gap - expected) / 2, (1 - gap) / (2 * student.total), torch.full_like(gap, 0.5), rows)


def _jensen_shannon(student: Softmax, teacher: Softmax) -> Slope:
    """``KL(p|m)/2 + KL(q|m)/2`` with ``m = (p+q)/2``; derivative ``q (log(q/m) - KL(q|m)) / 2``."""
    q, p = student.exp / student.total, teacher.exp.div_(teacher.total)
    # Where both have underflowed to 0, any finite logarithm will do: it is multiplied by 0.
    log_m = torch.add(p, q).clamp_min_(torch.finfo(p.dtype).tiny).log_().sub_(math.log(2))
    to_teacher = teacher.shifted.sub_(teacher.total.log()).sub_(log_m).mul_(p).sum(-1, keepdim=True)
    rows = student.shifted.sub_(student.total.log()).sub_(log_m).mul_(q)
    to_student = rows.sum(-1, keepdim=True)
    half = torch.full_like(to_student, 0.5)
    return Slope((to_teacher + to_student) / 2, -to_student / (2 * student.total), half, rows)


def _total_variation(student: Softmax, teacher: Softmax) -> Slope:
    """``sum |p - q| / 2``; derivative ``q (sign(q - p) - sum q sign(q - p)) / 2``, with sign(0) = 0."""
    gaps = torch.div(student.exp, student.total, out=student.shifted).sub_(teacher.exp.div_(teacher.total))
    value = torch.abs(gaps, out=teacher.exp).sum(-1, keepdim=True) / 2
    rows = gaps.sign_().mul_(student.exp)
    mean = rows.sum(-1, keepdim=True) / student.total
    return Slope(value, -mean / (2 * student.total), 1 / (2 * student.total), rows)


_CLOSED_FORMS: dict[str, Callable[[Softmax, Softmax], Slope]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "symmetric": _symmetric,
    "jensen_shannon": _jensen_shannon,
    "total_variation": _total_variation,
    "soft_ce": _soft_ce,
}


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far the student is from the teacher."""

    name: str = "forward_kl"  # One of ``DIVERGENCES``
    # Both distributions are ``softmax(logits / temperature)``, and values are multiplied by ``temperature ** 2``, so
    # that gradients keep their size (arXiv 1503.02531)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in DIVERGENCES:
            raise unknown_name("loss", self.name, DIVERGENCES)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature must be a positive number, but it is {self.temperature}: 1 changes nothing")

    def check_signal(self, signal: TeacherSignal) -> None:
        """Refuse a signal of the wrong kind, or taken at another temperature.

        The head of top-k targets is renormalised, and so can be brought to any temperature afterwards; a tail bucket
        and drawn ids cannot.
        """
        check_loss(self.name, signal.kind)
        if not isinstance(signal, SparseSignal) or signal.kind == "top-k":
            return
        if signal.temperature != self.temperature:
            raise UserError(
                f"{signal.kind} targets must be used at the temperature they were taken at, but that is "
                f"{signal.temperature:g} and the loss has {self.temperature:g}: "
                f"use temperature {signal.temperature:g} or take the targets anew"
            )

    def slope(self, student: Softmax, teacher: Softmax) -> Slope:
        """Value and derivative, without the temperature's factors; writes over all but ``student.exp``."""
        return _CLOSED_FORMS[self.name](student, teacher)


@dataclass(frozen=True)
class Targets:
    """A sparse signal ready for use: every row sums to one."""

    num_rows: int  # Rows of the vocabulary that the teacher's distribution is over
    ids: torch.Tensor  # ``[tokens, k]`` int64
    unused: torch.Tensor  # ``[tokens, k]`` slots without a token
    log_probs: torch.Tensor  # ``[tokens, k + 1]``, the other tokens' outcome last; finite
    probs: torch.Tensor  # ``[tokens, k + 1]``, exactly 0 where there is nothing

    @classmethod
    def of(cls, signal: SparseSignal, num_rows: int, temperature: float, dtype: torch.dtype) -> Targets:
        """Renormalise a signal, at a temperature that ``Divergence.check_signal`` allows."""
        log_probs = signal.log_probs.to(dtype)
        tail = signal.tail_log_mass
        last = log_probs.new_full((len(log_probs),), -torch.inf) if tail is None else tail.to(dtype)
        rows = torch.cat([log_probs, last[:, None]], 1) * (signal.temperature / temperature)
        rows = rows.log_softmax(-1)
        floor = torch.tensor(_FLOOR).log().item()
        return cls(num_rows, signal.ids, log_probs.isneginf(), rows.clamp_min(floor), rows.exp())

    def __getitem__(self, part: slice) -> Targets:
        return Targets(self.num_rows, self.ids[part], self.unused[part], self.log_probs[part], self.probs[part])


class OutcomeSlope(NamedTuple):
    """A divergence and its derivative by logits: ``at_ids`` at the ids, ``own * student.exp`` elsewhere."""

    value: torch.Tensor  # ``[rows, 1]``, in nats
    own: torch.Tensor  # ``[rows, 1]``
    ids: torch.Tensor  # ``[rows, k]``
    at_ids: torch.Tensor  # ``[rows, k]``, 0 in unused slots
    taken: torch.Tensor  # ``[rows, k]``, what ``student.exp`` was at the ids


def outcome_slope(divergence: Divergence, student: Softmax, targets: Targets) -> OutcomeSlope:
    """Value and derivative of a divergence from sparse targets.

    ``student``: ``[rows, vocabulary]``; its exponentials at the ids become 0, so that the sum over the other tokens is
    exact even where they have next to nothing.
    """
    taken = student.exp.gather(1, targets.ids).masked_fill_(targets.unused, 0)
    shifted = student.shifted.gather(1, targets.ids)
    student.exp.scatter_add_(1, targets.ids, -taken)  # 0 is added for unused slots, whatever id they name
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
