"""Differences of two models, in pairs of the same documents wherever both were measured on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from slm_ray.evaluate.intervals import Interval, Values, normal_interval, ratio_interval, ratio_stderr
from slm_ray.evaluate.text_metrics import corpus_difference
from slm_ray.records.evaluation import Difference, Verdict
from slm_ray.records.measurement import (
    Better,
    GenerationRecord,
    MeasurementRecord,
    TaskFigures,
    TaskRecord,
    TaskValues,
    TextRecord,
)

Names = tuple[str, str]
Kind = Literal["text", "task", "generation"]
WITHIN_NOISE = "within the noise"


def verdict(difference: float, interval: Interval | None, better: Better) -> Verdict:
    """What to call a difference: within the noise where its interval holds 0.

    Args:
        difference: Of the model, less the one it is compared with.
        interval: Of the difference; None where it is not known.
        better: ``less`` or ``more``.
    """
    if interval is None:
        return "noise not known"
    if interval[0] <= 0 <= interval[1]:
        return "within the noise"
    return "better" if (difference < 0) == (better == "less") else "worse"


def _difference(
    names: Names, kind: Kind, of: str, quantity: str, found: tuple[float, float | None, Interval | None],
    better: Better, *, paired: bool = True,
) -> Difference:  # fmt: skip
    value, stderr, interval = found
    low, high = interval or (None, None)
    return Difference(
        model=names[0], to=names[1], kind=kind, of=of, quantity=quantity, paired=paired, difference=value, low=low,
        high=high, stderr=stderr, better=better, verdict=verdict(value, interval, better),
    )  # fmt: skip


def _paired(gaps: Values, counts: Values) -> tuple[float, float | None, Interval | None]:
    """The ratio of two sums over documents with its standard error and interval."""
    return float(gaps.sum() / counts.sum()), ratio_stderr(gaps, counts), ratio_interval(gaps, counts)


def compare_text(names: Names, mine: TextRecord, other: TextRecord) -> Difference:
    """Two models on one domain.

    On the same tokens the losses are compared, in pairs of the same sequence, so that what makes a sequence hard for
    both cancels out. With different tokenizers the bits per byte are: in pairs of the same document where whole
    documents were read, and else as if the two errors were independent, which overstates the noise.

    Args:
        names: The model, and what it is compared with.
        mine: The model's record.
        other: The other's.
    """
    domain = mine.figures.domain
    if mine.figures.tokens_digest == other.figures.tokens_digest and mine.counts == other.counts:
        gaps = np.array(mine.losses, float) - np.array(other.losses, float)
        return _difference(names, "text", domain, "loss", _paired(gaps, np.array(mine.counts, float)), "less")
    if mine.text_digest is not None and mine.text_digest == other.text_digest:
        gaps, sizes = _bits(mine) - _bits(other), np.array(mine.unit_bytes, float)
        return _difference(names, "text", domain, "bits_per_byte", _paired(gaps, sizes), "less")
    value = mine.figures.bits_per_byte - other.figures.bits_per_byte
    first, second = mine.figures.bits_per_byte_stderr, other.figures.bits_per_byte_stderr
    stderr = None if first is None or second is None else math.hypot(first, second)
    found = (value, stderr, normal_interval(value, stderr))
    return _difference(names, "text", domain, "bits_per_byte", found, "less", paired=False)


def _bits(record: TextRecord) -> Values:
    """``[documents]`` bits that each costs; they add up to the bits per byte times the bytes."""
    losses = np.array(record.losses, float)
    return losses * (record.figures.bits_per_byte * record.figures.bytes / losses.sum())


def compare_samples(
    names: Names, kind: Kind, of: str, quantity: str, mine: Sequence[float], other: Sequence[float],
    better: Better = "more",
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
    gaps = np.array(mine, float) - np.array(other, float)
    return _difference(names, kind, of, quantity, _paired(gaps, np.ones(len(gaps))), better)


def compare_group(
    names: Names, of: str, quantity: str, members: Sequence[tuple[float, Sequence[float], Sequence[float]]],
    better: Better = "more",
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
        gaps = np.array(mine, float) - np.array(other, float)
        stderr = ratio_stderr(gaps, np.ones(len(gaps)))
        value += weight * float(gaps.mean())
        known &= stderr is not None
        variance += (weight * (stderr or 0.0)) ** 2
    stderr = math.sqrt(variance) if known else None
    return _difference(names, "task", of, quantity, (value, stderr, normal_interval(value, stderr)), better)


def compare_models(
    names: Names, mine: Sequence[MeasurementRecord], other: Sequence[MeasurementRecord]
) -> Iterator[Difference]:
    """Two models in everything that both were measured in.

    Args:
        names: The model, and what it is compared with.
        mine: The model's records.
        other: The other's.
    """
    others = {(type(record), record.name): record for record in other}
    for record in mine:
        match record, others.get((type(record), record.name)):
            case TextRecord(), TextRecord() as its:
                yield compare_text(names, record, its)
            case TaskRecord(), TaskRecord() as its:
                yield from _tasks(names, record, its)
            case GenerationRecord(), GenerationRecord() as its:
                yield from _generations(names, record, its)


def _tasks(names: Names, mine: TaskRecord, other: TaskRecord) -> Iterator[Difference]:
    for row in mine.tasks:
        if row.members is not None:
            yield from _groups(names, row, mine.values, other.values)
            continue
        values, its = mine.values[row.task], other.values.get(row.task)
        if its is None or values.documents_digest != its.documents_digest:
            continue  # not the same questions
        for metric, each in values.samples.items():
            if its.samples.get(metric):
                better = row.metrics[metric].better or "more"
                yield compare_samples(names, "task", row.task, metric, each, its.samples[metric], better)


def _groups(
    names: Names, row: TaskFigures, mine: Mapping[str, TaskValues], other: Mapping[str, TaskValues]
) -> Iterator[Difference]:
    """A group by its members' documents, in the metrics that both models have of all of them."""
    for metric, figure in row.metrics.items():
        members = []
        for task, weight in (row.weights or {}).items():
            values, its = mine.get(task), other.get(task)
            if values is None or its is None or values.documents_digest != its.documents_digest:
                break
            if not values.samples.get(metric) or not its.samples.get(metric):
                break
            members.append((weight, values.samples[metric], its.samples[metric]))
        else:
            if members:
                yield compare_group(names, row.task, metric, members, figure.better or "more")


def _generations(names: Names, mine: GenerationRecord, other: GenerationRecord) -> Iterator[Difference]:
    if mine.figures.settings.prompts_digest != other.figures.settings.prompts_digest:
        return
    for metric, figure in mine.figures.metrics.items():
        if figure.better is None:
            continue
        if metric in mine.statistics and metric in other.statistics:
            found = corpus_difference(metric, mine.statistics[metric], other.statistics[metric])
            yield _difference(names, "generation", metric, metric, found, figure.better)
        elif metric in mine.values and metric in other.values:
            each, its = mine.values[metric], other.values[metric]
            yield compare_samples(names, "generation", metric, metric, each, its, figure.better)
