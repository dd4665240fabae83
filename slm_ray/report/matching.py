"""How many tokens and FLOPs one way of training needs to come as far as another: pure functions on evaluation curves.

Nothing is interpolated: a loss counts as reached at the first evaluation that shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slm_ray.config.columns import aligned
from slm_ray.config.units import format_count, perplexity_of_loss
from slm_ray.records.training import TrainEvaluation
from slm_ray.report.text import flops_text


@dataclass(frozen=True)
class Point:
    """One evaluation."""

    tokens: int  # Tokens trained on so far; 0 for the evaluation before the first step
    flops: float  # FLOPs of training so far, the model's own and its teacher's, without what was spent before the start
    loss: float  # Validation loss, nats per token


@dataclass(frozen=True)
class Curve:
    """One start's evaluations, in order, and what else it cost."""

    name: str  # What the start is called
    points: tuple[Point, ...]  # At least one; the first is the one before training, with 0 tokens
    teacher_flops: float = 0.0  # The teacher's part of the last point's FLOPs
    search_flops: float = 0.0  # Spent on finding the start, before its first step
    capture_flops: float = 0.0  # Spent on capturing the teacher's logits, before its first step

    @property
    def sunk_flops(self) -> float:
        """FLOPs spent before the first step."""
        return self.search_flops + self.capture_flops

    @property
    def final_loss(self) -> float:
        """The loss of the last evaluation."""
        return self.points[-1].loss


def make_curve(
    name: str, evaluations: Sequence[TrainEvaluation], search_flops: float | None, capture_flops: float
) -> Curve | None:
    """A model's evaluations, whose losses are numbers, as a curve; None where there are fewer than two."""
    if len(evaluations) < 2:
        return None
    points = tuple(Point(one.tokens, one.flops.own + one.flops.teacher, one.loss or 0.0) for one in evaluations)
    return Curve(name, points, evaluations[-1].flops.teacher, search_flops or 0.0, capture_flops)


@dataclass(frozen=True)
class Match:
    """What one start needed to reach another's final loss."""

    # Tokens at the first evaluation at or below it; 0 where the start was there before its first step, None where it
    # never was
    tokens: int | None
    flops: float | None  # FLOPs up to there, everything sunk included; None where never
    ratio_tokens: float | None  # The other's tokens over these; None where never, or where either is 0
    ratio_flops: float | None  # The other's FLOPs (sunk included) over these; None where never, or where either is 0


def reach(curve: Curve, target_loss: float) -> tuple[int, float] | None:
    """Tokens and FLOPs, sunk ones included, at the first evaluation at or below a loss; None if there is none."""
    found = next((point for point in curve.points if point.loss <= target_loss), None)
    return None if found is None else (found.tokens, found.flops + curve.sunk_flops)


def match(curve: Curve, reference: Curve) -> Match:
    """What a start needed to reach the reference's final loss, against what the reference needed.

    The reference's own cost is also taken where it first was at its final loss, so that a reference that had long been
    there does not flatter the other side.
    """
    mine, other = reach(curve, reference.final_loss), reach(reference, reference.final_loss)
    if mine is None or other is None:
        return Match(None, None, None, None)
    tokens, flops = (other[i] / mine[i] if mine[i] and other[i] else None for i in (0, 1))
    return Match(*mine, tokens, flops)


def equal_flops(curves: Sequence[Curve]) -> tuple[float, dict[str, Point | None]]:
    """Every start at the same price: the largest number of FLOPs that all of them spent, sunk ones included.

    Returns the FLOPs, and for every start its last evaluation at or below them; None where it had spent more before its
    first evaluation.
    """
    budget = min(curve.points[-1].flops + curve.sunk_flops for curve in curves)
    found: dict[str, Point | None] = {}
    for curve in curves:
        reached = [point for point in curve.points if point.flops + curve.sunk_flops <= budget]
        found[curve.name] = reached[-1] if reached else None
    return budget, found


def _ratio(value: float | None) -> str:
    if value is None or value == 1:
        return ""
    return f" ({value:.3g}x fewer)" if value >= 1 else f" ({1 / value:.3g}x more)"


def _describe_match(curve: Curve, reference: Curve) -> str:
    found = match(curve, reference)
    if found.tokens is None or found.flops is None:
        return f"  {curve.name}: not reached in {format_count(curve.points[-1].tokens)} tokens"
    trained = f"{format_count(found.tokens)} tokens{_ratio(found.ratio_tokens)}"
    tokens = trained if found.tokens else "before its first step"
    return f"  {curve.name}: {tokens}, {flops_text(found.flops)} FLOPs{_ratio(found.ratio_flops)}"


def _perplexity(loss: float) -> float:
    return perplexity_of_loss(loss) or math.inf


def table(curves: Sequence[Curve]) -> list[str]:
    """The lines that a comparison prints: what every start cost and reached, and what it needed to match the others.

    FLOPs to match include the search and the capture.
    """
    rows = [["start", "tokens", "own FLOPs", "teacher", "search", "capture", "first loss", "final loss", "perplexity"]]
    for curve in curves:
        last = curve.points[-1]
        spent = (last.flops - curve.teacher_flops, curve.teacher_flops, curve.search_flops, curve.capture_flops)
        rows.append([
            curve.name, format_count(last.tokens), *map(flops_text, spent),
            f"{curve.points[0].loss:.4f}", f"{last.loss:.4f}", f"{_perplexity(last.loss):.4g}",
        ])  # fmt: skip
    lines = aligned(rows)
    for reference in curves:
        others = [curve for curve in curves if curve is not reference]
        if others:
            lines += ["", f"{reference.name}'s final loss of {reference.final_loss:.4f} was reached after:"]
            lines += [_describe_match(curve, reference) for curve in [reference, *others]]
    if len(curves) > 1:
        budget, found = equal_flops(curves)
        lines += ["", f"at {flops_text(budget)} FLOPs each, everything counted, the loss was:"]
        lines += [
            f"  {name}: {point.loss:.4f} after {format_count(point.tokens)} tokens" if point else
            f"  {name}: had spent more before its first step"
            for name, point in found.items()
        ]  # fmt: skip
    return lines
