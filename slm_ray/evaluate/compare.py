"""Intervals of one model's figures, and of the difference of two models on the same documents."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

WITHIN_NOISE, BETTER, WORSE, UNKNOWN = "within the noise", "better", "worse", "noise not known"
LESS, MORE = "less", "more"
CONFIDENCE = 0.95
_NORMAL = 1.959963984540054
_RESAMPLES = 2000
# Below this many documents the bias-corrected and accelerated bootstrap is worth its cost, n more evaluations.
_FEW = 1000

Values = npt.NDArray[np.float64]


def ratio_stderr(totals: Values, counts: Values) -> float | None:
    """The standard error of ``sum(totals) / sum(counts)`` over documents (delta method); None for a single one.

    Args:
        totals: ``[documents]`` sums of what is averaged, e.g. losses, or differences of two models' losses.
        counts: ``[documents]`` how many there were of each.
    """
    number, all_counts = len(totals), counts.sum()
    if number < 2 or all_counts == 0:
        return None
    residuals = totals - totals.sum() / all_counts * counts
    return float(np.sqrt((residuals**2).sum() * number / (number - 1)) / all_counts)


def _ratio(totals: Values, counts: Values, axis: int = -1) -> Any:
    return totals.sum(axis=axis) / counts.sum(axis=axis)


def ratio_interval(totals: Values, counts: Values) -> tuple[float, float] | None:
    """The 95% bootstrap interval of ``sum(totals) / sum(counts)``, documents resampled together with their counts.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993): BCa where documents are few, percentiles where they
    are many. The resampling is seeded: the same documents give the same interval.

    Args:
        totals: ``[documents]`` sums.
        counts: ``[documents]`` how many there were of each.

    Returns:
        Low and high; None for fewer than two documents.
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


def wilson_interval(successes: float, number: float) -> tuple[float, float]:
    """Wilson's 95% interval (1927) of a share; halves of ties may be among the successes."""
    share, square = successes / number, _NORMAL**2
    middle = (share + square / (2 * number)) / (1 + square / number)
    half = _NORMAL * math.sqrt(share * (1 - share) / number + square / (4 * number**2)) / (1 + square / number)
    return max(0.0, middle - half), min(1.0, middle + half)


def normal_interval(value: float, stderr: float | None) -> tuple[float, float] | None:
    """The 95% interval of a normal distribution around a value; None where the noise is not known."""
    return None if stderr is None else (value - _NORMAL * stderr, value + _NORMAL * stderr)


def mean_interval(values: Values) -> tuple[float, float] | None:
    """The 95% interval of a mean over documents: Wilson's for zeros and ones, the bootstrap's for anything else.

    Args:
        values: ``[documents]``.
    """
    if len(values) < 2:
        return None
    if np.isin(values, (0.0, 1.0)).all():
        return wilson_interval(float(values.sum()), len(values))
    return ratio_interval(values, np.ones(len(values)))


def verdict(difference: float, interval: tuple[float, float] | None, better: str) -> str:
    """What to call a difference: within the noise where its interval holds 0.

    Args:
        difference: Of the model, less the one it is compared with.
        interval: Of the difference; None where it is not known.
        better: ``less`` or ``more``.
    """
    if interval is None:
        return UNKNOWN
    if interval[0] <= 0 <= interval[1]:
        return WITHIN_NOISE
    return BETTER if (difference < 0) == (better == LESS) else WORSE


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One model against another in one quantity.

    Attributes:
        model: The model.
        to: What it is compared with.
        kind: ``text``, ``task`` or ``generation``.
        of: The domain, the task, or the metric.
        quantity: ``loss``, ``bits_per_byte``, ``acc``, …
        paired: Both were measured on the same documents, and these are the units of the bootstrap.
        difference: ``model - to``.
        low: Lower end of its 95% interval.
        high: Upper end.
        stderr: Its standard error.
        better: Whether ``less`` or ``more`` is better.
        verdict: ``better``, ``worse``, ``within the noise`` or ``noise not known``.
    """

    model: str
    to: str
    kind: str
    of: str
    quantity: str
    paired: bool
    difference: float
    low: float | None
    high: float | None
    stderr: float | None
    better: str
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def _made(
    names: tuple[str, str], kind: str, of: str, quantity: str, value: float, stderr: float | None,
    interval: tuple[float, float] | None, better: str, *, paired: bool,
) -> Difference:  # fmt: skip
    low, high = interval or (None, None)
    return Difference(
        model=names[0], to=names[1], kind=kind, of=of, quantity=quantity, paired=paired, difference=value, low=low,
        high=high, stderr=stderr, better=better, verdict=verdict(value, interval, better),
    )  # fmt: skip


def compare_text(names: tuple[str, str], domain: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> Difference:
    """Two models on one domain.

    On the same tokens the losses are compared, in pairs of the same sequence, so that what makes a sequence hard for
    both cancels out. With different tokenizers the bits per byte are: in pairs of the same document where whole
    documents were read, and else as if the two errors were independent, which overstates the noise.

    Args:
        names: The model, and what it is compared with.
        domain: The text.
        mine: The model's record of it: ``losses``, ``counts``, ``unit_bytes``, ``tokens_digest``, ``text_digest``,
            ``bits_per_byte``, ``bits_per_byte_stderr``.
        other: The other's.
    """
    if mine["tokens_digest"] == other["tokens_digest"] and mine["counts"] == other["counts"]:
        gap = np.array(mine["losses"], float) - np.array(other["losses"], float)
        counts = np.array(mine["counts"], float)
        value = float(_ratio(gap, counts))
        error, interval = ratio_stderr(gap, counts), ratio_interval(gap, counts)
        return _made(names, "text", domain, "loss", value, error, interval, LESS, paired=True)
    if mine["text_digest"] is not None and mine["text_digest"] == other["text_digest"]:
        gap = _bits(mine) - _bits(other)
        sizes = np.array(mine["unit_bytes"], float)
        value = float(_ratio(gap, sizes))
        error, interval = ratio_stderr(gap, sizes), ratio_interval(gap, sizes)
        return _made(names, "text", domain, "bits_per_byte", value, error, interval, LESS, paired=True)
    value = mine["bits_per_byte"] - other["bits_per_byte"]
    errors = (mine["bits_per_byte_stderr"], other["bits_per_byte_stderr"])
    stderr = None if errors[0] is None or errors[1] is None else math.hypot(*errors)
    interval = normal_interval(value, stderr)
    return _made(names, "text", domain, "bits_per_byte", value, stderr, interval, LESS, paired=False)


def _bits(record: Mapping[str, Any]) -> Values:
    """``[documents]`` bits that each costs; they add up to the record's bits per byte times its bytes."""
    losses = np.array(record["losses"], float)
    return losses * (record["bits_per_byte"] * record["bytes"] / losses.sum())


def compare_samples(
    names: tuple[str, str], kind: str, of: str, quantity: str, mine: Sequence[float], other: Sequence[float],
    better: str = MORE,
) -> Difference:  # fmt: skip
    """Two models by a metric that is a mean over the same documents, in pairs.

    Args:
        names: The model, and what it is compared with.
        kind: ``task`` or ``generation``.
        of: The task or metric.
        quantity: The metric.
        mine: The model's value for each document.
        other: The other's, of the same documents in the same order.
        better: Whether ``less`` or ``more`` is better.
    """
    gap = np.array(mine, float) - np.array(other, float)
    ones = np.ones(len(gap))
    return _made(
        names, kind, of, quantity, float(gap.mean()), ratio_stderr(gap, ones), ratio_interval(gap, ones), better,
        paired=True,
    )  # fmt: skip


def compare_known(
    names: tuple[str, str], kind: str, of: str, found: tuple[float, float | None, tuple[float, float] | None],
    better: str,
) -> Difference:  # fmt: skip
    """Two models by a difference that was resampled in pairs already, such as that of two corpora's BLEU.

    Args:
        names: The model, and what it is compared with.
        kind: ``task`` or ``generation``.
        of: The metric.
        found: The difference, its standard error and its 95% interval.
        better: Whether ``less`` or ``more`` is better.
    """
    value, stderr, interval = found
    return _made(names, kind, of, of, value, stderr, interval, better, paired=True)


def compare_group(
    names: tuple[str, str], of: str, quantity: str,
    members: Sequence[tuple[float, Sequence[float], Sequence[float]]], better: str = MORE,
) -> Difference:  # fmt: skip
    """Two models by a weighted mean over a group's tasks, each paired over its own documents.

    Args:
        names: The model, and what it is compared with.
        of: The group.
        quantity: The metric.
        members: Weight, the model's values and the other's, for each task; the weights add up to 1.
        better: Whether ``less`` or ``more`` is better.
    """
    value, variance, known = 0.0, 0.0, True
    for weight, mine, other in members:
        gap = np.array(mine, float) - np.array(other, float)
        stderr = ratio_stderr(gap, np.ones(len(gap)))
        value += weight * float(gap.mean())
        known &= stderr is not None
        variance += (weight * (stderr or 0.0)) ** 2
    stderr = math.sqrt(variance) if known else None
    interval = normal_interval(value, stderr)
    return _made(names, "task", of, quantity, value, stderr, interval, better, paired=True)
