"""Where to put labels so that none covers another, or a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Left-right and up-down, the places tried first being best: right and above, then around the point.
_SIDES = ((1, 1), (1, 0), (1, -1), (-1, 1), (-1, 0), (-1, -1), (0, 1), (0, -1))
_GAPS = (11.0, 19.0, 30.0, 46.0, 66.0)
_LABEL_COST, _OUTSIDE_COST, _POINT_COST, _GAP_COST, _SIDE_COST = 1000.0, 3000.0, 40.0, 1.0, 2.0


@dataclass(frozen=True)
class Box:
    """A rectangle; units and the direction of the vertical axis are the caller's."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The share of this box that the other covers."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        area = (self.right - self.left) * (self.top - self.bottom)
        return max(width, 0.0) * max(height, 0.0) / area if area else 0.0

    def holds(self, x: float, y: float, margin: float = 0.0) -> bool:
        """Whether a point lies in the box or within the margin around it."""
        return self.left - margin <= x <= self.right + margin and self.bottom - margin <= y <= self.top + margin


@dataclass(frozen=True)
class Label:
    """A label to place: the point it names, its size, and the side it would rather be on."""

    x: float
    y: float
    width: float
    height: float
    prefer: tuple[int, int] = (1, 1)


def _box_at(label: Label, side: tuple[int, int], gap: float) -> Box:
    across, up = side
    reach = gap * (0.75 if across and up else 1.0)
    left = label.x + (reach if across > 0 else -reach - label.width if across < 0 else -label.width / 2)
    bottom = label.y + (reach if up > 0 else -reach - label.height if up < 0 else -label.height / 2)
    return Box(left, bottom, left + label.width, bottom + label.height)


def place_labels(
    labels: Sequence[Label], bounds: Box, *, points: Sequence[tuple[float, float]] = (), taken: Sequence[Box] = ()
) -> list[Box]:
    """Place labels one after another, each where it costs least.

    Args:
        labels: In order of importance.
        bounds: Where labels may be.
        points: What should not be covered, if it can be helped.
        taken: What must not be covered.

    Returns:
        A box for every label, in their order.
    """
    placed: list[Box] = []
    for label in labels:
        options: list[tuple[float, int, Box]] = []
        for gap_rank, gap in enumerate(_GAPS):
            for side in _SIDES:
                box = _box_at(label, side, gap)
                distance = abs(side[0] - label.prefer[0]) + abs(side[1] - label.prefer[1])
                cost = _GAP_COST * gap_rank**2 * 4 + _SIDE_COST * distance
                cost += _LABEL_COST * sum(box.overlap(other) for other in (*placed, *taken))
                cost += _OUTSIDE_COST * (1.0 - box.overlap(bounds))
                cost += _POINT_COST * sum(box.holds(x, y, 3.0) for x, y in points)
                options.append((cost, len(options), box))
        placed.append(min(options)[2])
    return placed
