"""Axes of pictures and where labels go: ranges, ticks, and places for text that cover nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

_LOG_SPAN = 30.0
# The core (the front and the teacher) keeps at least 40% of the height; what lies higher is drawn at the top edge.
_USUAL_SHARE, _EDGE_ROOM_SHARE, _MARGIN_SHARE = 0.97, 0.2, 0.06
_LEAST_HEADROOM = math.log10(2.0)
_TICK_STEPS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 3, 4, 5, 6, 7, 8, 9),
)
_SIDES = ((1, 1), (1, 0), (1, -1), (-1, 1), (-1, 0), (-1, -1), (0, 1), (0, -1))
_GAPS = (11.0, 19.0, 30.0, 46.0, 66.0)
_LABEL_COST, _OUTSIDE_COST, _POINT_COST, _SIDE_COST = 1000.0, 3000.0, 40.0, 2.0
_PIXELS_PER_LETTER, _LABEL_HEIGHT = 6.6, 15.0


@dataclass(frozen=True)
class Axis:
    """An axis: its title, its range, and where its ticks are (none: the drawing library's choice)."""

    title: str
    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] = ()

    def share(self, value: float) -> float:
        """Where a value lies between the two ends, 0 to 1."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / ((high - low) or 1.0)

    def at(self, share: float) -> float:
        """The value at a share of the axis."""
        if self.log:
            return math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return self.low + share * (self.high - self.low)


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Round values inside a logarithmic range: the coarsest set that has at least four; empty where none has."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _TICK_STEPS:
        inside = tuple(v for power in powers for step in steps if low <= (v := step * 10.0**power) <= high)
        if len(inside) >= 4:
            return inside
    return ()


def axis_over(values: Sequence[float], title: str, *, zero: bool = False) -> Axis:
    """An axis over some values: logarithmic where they span more than a factor of thirty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low > 0 and high / low > _LOG_SPAN:
        low, high = low / 1.3, high * 1.3
        return Axis(f"{title} (log scale)", low, high, True, log_ticks(low, high) if high / low < 1e4 else ())
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(title, 0.0 if zero and low >= 0 else low - margin, high + margin)


def perplexity_axis(core: Sequence[float], others: Sequence[float], title: str) -> Axis:
    """The logarithmic axis of perplexities; its core takes at least 40% of the height.

    ``core``: What must be readable: the front and the teacher.
    """
    core = list(core) or list(others)
    if not core:
        return Axis(title, 1.0, 100.0, True)
    low, high = math.log10(min(core)), math.log10(max(core))
    limit = high + max(high - low, _LEAST_HEADROOM)
    logs = sorted(math.log10(value) for value in others)
    usual = logs[: math.ceil(_USUAL_SHARE * len(logs))]
    low = min([low, *logs])
    high = max([high, *(value for value in usual if value <= limit)])
    margin = max(_MARGIN_SHARE * (high - low), 0.02)
    # A point just above the usual ones costs less height inside the axis than a place at its edge.
    high = max([high, *(value for value in logs if value <= high + 2 * margin)])
    room = _EDGE_ROOM_SHARE * (high - low) if any(value > high for value in logs) else 0.0
    bottom, top = 10 ** (low - 1.5 * margin), 10 ** (high + max(margin, room))
    return Axis(title, bottom, top, True, log_ticks(bottom, top))


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; the vertical axis points upwards."""

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

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in the box or within three pixels of it."""
        return self.left - 3 <= x <= self.right + 3 and self.bottom - 3 <= y <= self.top + 3


@dataclass(frozen=True)
class Label:
    """A text beside a point (pixels), and the side it would rather be on."""

    x: float
    y: float
    text: str
    prefer: tuple[int, int] = (1, 1)
    strong: bool = False


def _box_at(label: Label, side: tuple[int, int], gap: float) -> Box:
    (across, up), width = side, _PIXELS_PER_LETTER * len(label.text)
    reach = gap * (0.75 if across and up else 1.0)
    left = label.x + (reach if across > 0 else -reach - width if across < 0 else -width / 2)
    bottom = label.y + (reach if up > 0 else -reach - _LABEL_HEIGHT if up < 0 else -_LABEL_HEIGHT / 2)
    return Box(left, bottom, left + width, bottom + _LABEL_HEIGHT)


def along(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of a line of pixels with others between them, so that none are more than eight pixels apart."""
    found = list(line[:1])
    for (left, down), (right, up) in itertools.pairwise(line):
        steps = max(1, math.ceil(math.hypot(right - left, up - down) / 8))
        found += [(left + (right - left) * i / steps, down + (up - down) * i / steps) for i in range(1, steps + 1)]
    return found


def place_labels(labels: Sequence[Label], bounds: Box, points: Sequence[tuple[float, float]] = ()) -> list[Box]:
    """Place labels one after another, each where it costs least."""
    placed: list[Box] = []
    for label in labels:
        options: list[tuple[float, int, Box]] = []
        for rank, gap in enumerate(_GAPS):
            for side in _SIDES:
                box = _box_at(label, side, gap)
                distance = abs(side[0] - label.prefer[0]) + abs(side[1] - label.prefer[1])
                cost = 4.0 * rank**2 + _SIDE_COST * distance
                cost += _LABEL_COST * sum(box.overlap(other) for other in placed)
                cost += _OUTSIDE_COST * (1.0 - box.overlap(bounds))
                cost += _POINT_COST * sum(box.holds(x, y) for x, y in points)
                options.append((cost, len(options), box))
        placed.append(min(options)[2])
    return placed
