"""95% intervals and standard errors of means over documents."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
_NORMAL = 1.959963984540054
_RESAMPLES = 2000
# Below this many documents the bias-corrected and accelerated bootstrap is worth its cost, n more evaluations.
_FEW = 1000

Values = npt.NDArray[np.float64]
Interval = tuple[float, float]


def ratio_stderr(totals: Values, counts: Values) -> float | None:
    """The standard error of ``sum(totals) / sum(counts)`` of ``[documents]`` (delta method); None for one."""
    number, all_counts = len(totals), counts.sum()
    if number < 2 or all_counts == 0:
        return None
    residuals = totals - totals.sum() / all_counts * counts
    return float(np.sqrt((residuals**2).sum() * number / (number - 1)) / all_counts)


def _ratio(totals: Values, counts: Values, axis: int = -1) -> Any:
    return totals.sum(axis=axis) / counts.sum(axis=axis)


def ratio_interval(totals: Values, counts: Values) -> Interval | None:
    """The 95% bootstrap interval of ``sum(totals) / sum(counts)``, ``[documents]`` resampled with their counts.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993): BCa where documents are few, percentiles where they
    are many. The resampling is seeded: the same documents give the same interval. None for fewer than two documents.
    """
    number = len(totals)
    if number < 2 or counts.sum() == 0:
        return None
    value = float(_ratio(totals, counts))
    if np.allclose(totals, value * counts, rtol=0, atol=1e-12 * max(1.0, float(np.abs(totals).max()))):
        return value, value  # every document says the same, and BCa has nothing to correct
    from scipy import stats

    method = "BCa" if number < _FEW else "percentile"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (totals, counts), _ratio, paired=True, vectorized=True, n_resamples=_RESAMPLES, method=method,
            confidence_level=CONFIDENCE, batch=max(1, 2_000_000 // number), rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return normal_interval(value, ratio_stderr(totals, counts) or 0.0)
    return float(found.low), float(found.high)


def wilson_interval(successes: float, number: float) -> Interval:
    """Wilson's 95% interval (1927) of a share; halves of ties may be among the successes."""
    share, square = successes / number, _NORMAL**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    half = _NORMAL * math.sqrt(share * (1 - share) / number + square / (4 * number**2)) / (1 + square / number)
    return max(0.0, middle - half), min(1.0, middle + half)


def normal_interval(value: float, stderr: float | None) -> Interval | None:
    """The 95% interval of a normal distribution around a value; None where the noise is not known."""
    return None if stderr is None else (value - _NORMAL * stderr, value + _NORMAL * stderr)


def mean_interval(values: Values) -> Interval | None:
    """The 95% interval of a mean over ``[documents]``: Wilson's for zeros and ones, the bootstrap's for others."""
    if len(values) < 2:
        return None
    if np.isin(values, (0.0, 1.0)).all():
        return wilson_interval(float(values.sum()), len(values))
    return ratio_interval(values, np.ones(len(values)))
