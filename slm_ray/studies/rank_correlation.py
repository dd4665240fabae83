"""Rank correlations with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slm_ray.records.proxies import RankCorrelation, RankCorrelations

RESAMPLES = 2000
LEVEL = 0.95
_FEWEST_DEFINED = 0.5  # of the resamples, for an interval to be given

Array = NDArray[np.float64]


def kendall(x: Array, y: Array, counts: Array) -> Array:
    """Kendall's tau-b of samples that hold observation ``i`` ``counts[s, i]`` times.

    Tau-b is the number of concordant minus discordant pairs over the geometric mean of the pairs untied in ``x`` and
    those untied in ``y`` (Kendall 1945). All three are sums over pairs, so a resample needs only its counts: copies of
    one observation are ties.

    ``x``: ``[observations]``. ``y``: ``[observations]``. ``counts``: ``[samples, observations]``; a row of ones is the
    sample itself. Returns ``[samples]``; NaN where all of ``x`` or all of ``y`` is tied.
    """
    across, along = np.sign(x[:, None] - x[None, :]), np.sign(y[:, None] - y[None, :])

    def pairs(matrix: Array) -> Array:
        return np.asarray(np.einsum("si,ij,sj->s", counts, matrix, counts, optimize=True))

    return _ratio(pairs(across * along), pairs(np.abs(across)), pairs(np.abs(along)))


def spearman(x: Array, y: Array, counts: Array) -> Array:
    """Spearman's rho (Pearson's r of the mid-ranks) of samples given as in :func:`kendall`.

    Returns ``[samples]``; NaN where all of ``x`` or all of ``y`` is tied.
    """
    ranks = [_mid_ranks(values, counts) for values in (x, y)]
    size = counts.sum(axis=1, keepdims=True)
    first, second = (rank - (counts * rank).sum(axis=1, keepdims=True) / size for rank in ranks)
    return _ratio(*((counts * a * b).sum(axis=1) for a, b in ((first, second), (first, first), (second, second))))


def _mid_ranks(values: Array, counts: Array) -> Array:
    """``[samples, observations]`` rank of each observation in each sample; of tied ones the middle of theirs."""
    below, equal = values[None, :] < values[:, None], values[None, :] == values[:, None]
    return np.asarray(counts @ below.T + (counts @ equal.T + 1) / 2, dtype=np.float64)


def _ratio(both: Array, first: Array, second: Array) -> Array:
    scale = np.sqrt(first) * np.sqrt(second)
    defined = scale > 1e-9
    return np.where(defined, np.clip(both / np.where(defined, scale, 1.0), -1.0, 1.0), np.nan)


STATISTICS = {"kendall": kendall, "spearman": spearman}


def rank_correlations(
    x: Sequence[float], y: Sequence[float], seed: int, resamples: int = RESAMPLES
) -> RankCorrelations:
    """Kendall's tau-b and Spearman's rho with 95% intervals from resampled pairs (the percentile bootstrap).

    ``x``: ``[observations]``, finite. ``y``: ``[observations]``, finite.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    size = len(a)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(size, size=(resamples, size))
    counts = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(np.float64)
    return RankCorrelations(**{
        name: _with_interval(statistic(a, b, np.ones((1, size)))[0], statistic(a, b, counts), a)
        for name, statistic in STATISTICS.items()
    })  # fmt: skip


def _with_interval(value: float, resampled: Array, x: Array) -> RankCorrelation:
    if np.isnan(value):
        which = "its values" if np.all(x == x[0]) else "the losses"
        return RankCorrelation(value=None, note=f"undefined: {which} are all equal")
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < _FEWEST_DEFINED * len(resampled):
        return RankCorrelation(value=float(value), note="too many ties for an interval")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return RankCorrelation(value=float(value), low=float(low), high=float(high))
