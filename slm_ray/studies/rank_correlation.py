"""Rank correlations with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from slm_ray.records.proxies import RankCorrelation, RankCorrelations

RESAMPLES = 2000
LEVEL = 0.95
_FEWEST_DEFINED = 0.5  # of the resamples, for an interval to be given

Array = NDArray[np.float64]


def kendall(x: Array, y: Array) -> Array:
    """Kendall's tau-b (1945) of each row of ``[samples, observations]``; NaN where all of ``x`` or of ``y`` is tied."""
    across, along = (np.sign(one[:, :, None] - one[:, None, :]).astype(np.int8) for one in (x, y))
    return _ratio(*(product.sum(axis=(1, 2)) for product in (across * along, np.abs(across), np.abs(along))))


def spearman(x: Array, y: Array) -> Array:
    """Spearman's rho, Pearson's r of the mid-ranks, of samples given as in :func:`kendall`."""
    ranks = (rankdata(one, axis=1) for one in (x, y))
    first, second = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    return _ratio(*((a * b).sum(axis=1) for a, b in ((first, second), (first, first), (second, second))))


def _ratio(both: Array, first: Array, second: Array) -> Array:
    scale = np.sqrt(first) * np.sqrt(second)
    defined = scale > 1e-9
    return np.where(defined, np.clip(both / np.where(defined, scale, 1.0), -1.0, 1.0), np.nan)


def rank_correlations(
    x: Sequence[float], y: Sequence[float], seed: int, resamples: int = RESAMPLES
) -> RankCorrelations:
    """Both correlations of finite pairs with 95% intervals from resampled pairs (the percentile bootstrap)."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    found = {name: _with_interval(statistic(a[None], b[None])[0], statistic(a[drawn], b[drawn]), a)
             for name, statistic in (("kendall", kendall), ("spearman", spearman))}  # fmt: skip
    return RankCorrelations(**found)


def _with_interval(value: float, resampled: Array, x: Array) -> RankCorrelation:
    if np.isnan(value):
        which = "its values" if np.all(x == x[0]) else "the losses"
        return RankCorrelation(value=None, note=f"undefined: {which} are all equal")
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < _FEWEST_DEFINED * len(resampled):
        return RankCorrelation(value=float(value), note="too many ties for an interval")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return RankCorrelation(value=float(value), low=float(low), high=float(high))
