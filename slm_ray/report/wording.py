"""How figures are written in every table, picture and page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slm_ray.config.units import format_count
from slm_ray.report.model import Shape

MISSING = "–"
NORMAL_95 = 1.96
_PLAIN_LIMIT = 1e7


def perplexity_text(value: float | None, stderr: float | None = None) -> str:
    """A perplexity with three figures or all its digits: ``33.2 ± 0.9``, ``90,123``; a dash where there is none."""
    if value is None:
        return MISSING
    text = _number_text(value)
    return text if stderr is None else f"{text} ± {_stderr_text(stderr, value)}"


def _number_text(value: float) -> str:
    if value >= _PLAIN_LIMIT:
        return f"{value:.2g}"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _stderr_text(stderr: float, value: float) -> str:
    if value >= _PLAIN_LIMIT:
        return f"{stderr:.1g}"
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    # As many decimals as the value has, unless that would say "0.0".
    return f"{stderr:,.{digits}f}" if round(stderr, digits) > 0 else f"{stderr:.1g}"


def interval_text(value: float | None, stderr: float | None) -> str:
    """The 95% interval of a normal distribution around the value, or a dash."""
    if value is None or stderr is None:
        return MISSING
    low, high = max(value - NORMAL_95 * stderr, 0.0), value + NORMAL_95 * stderr
    return f"{_number_text(low)} to {_number_text(high)}"


def ratio_text(value: float | None, of: float | None) -> str:
    """How many times: ``1.72×``, ``4,670×``."""
    if value is None or not of:
        return MISSING
    ratio = value / of
    return f"{ratio:,.0f}×" if ratio >= 99.5 else (f"{ratio:.1f}×" if ratio >= 9.95 else f"{ratio:.2f}×")


def share_text(value: float | None, of: float | None) -> str:
    """A share in per cent: ``70.0%``."""
    return MISSING if value is None or not of else f"{100 * value / of:.1f}%"


def count_text(value: float | None) -> str:
    """A count with a suffix, or a dash."""
    return MISSING if value is None else format_count(value)


def range_text(values: Sequence[int]) -> str:
    """The least and the largest of some sizes: ``2–9``, or ``9`` where all are the same."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def shape_text(shape: Shape | None, teacher: Shape | None = None) -> str:
    """A shape in one phrase: ``24 of 30 layers · width 576 · 2–9 heads · 512–1536 neurons``."""
    if shape is None or not shape.num_layers:
        return MISSING
    of = f" of {teacher.num_layers}" if teacher else ""
    parts = [
        f"{shape.num_layers}{of} layers",
        f"width {shape.hidden_size}",
        f"{range_text(shape.num_attention_heads)} heads",
        f"{range_text(shape.intermediate_size)} neurons",
    ]
    return " · ".join(parts)


def differs(a: float, a_stderr: float | None, b: float, b_stderr: float | None) -> bool | None:
    """Whether two perplexities are further apart than their joint 95% interval; None where that is not known.

    They are compared as losses (logarithms), whose errors are nearly normal: a ruined model's perplexity of 1e7 ± 1e7
    is no less clearly worse than 20. Errors are taken as independent, which is the cautious side on one text.
    """
    if a_stderr is None or b_stderr is None or min(a, b) <= 0:
        return None
    return abs(math.log(a / b)) > NORMAL_95 * math.hypot(a_stderr / a, b_stderr / b)
