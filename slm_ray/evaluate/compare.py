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
"""The model, and what it is compared with."""
Kind = Literal["text", "task", "generation"]
Found = tuple[float, float | None, Interval | None]
"""A difference, its standard error and its 95% interval."""
WITHIN_NOISE = "within the noise"


def verdict(difference: float, interval: Interval | None, better: Better) -> Verdict:
    """What to call a difference: within the noise where its interval holds 0."""
    if interval is None:
        return "noise not known"
    if interval[0] <= 0 <= interval[1]:
        return "within the noise"
    return "better" if (difference < 0) == (better == "less") else "worse"


def _difference(
    names: Names, kind: Kind, of: str, quantity: str, found: Found, better: Better, *, paired: bool = True
) -> Difference:
    value, stderr, interval = found
    low, high = interval or (None, None)
    return Difference(
        model=names[0], to=names[1], kind=kind, of=of, quantity=quantity, paired=paired, difference=value, low=low,
        high=high, stderr=stderr, better=better, verdict=verdict(value, interval, better),
    )  # fmt: skip


def _paired(mine: Values, other: Values, counts: Values) -> Found:
    """The difference of two ratios of sums over the same ``[documents]``."""
    gaps = mine - other
    return float(gaps.sum() / counts.sum()), ratio_stderr(gaps, counts), ratio_interval(gaps, counts)


def compare_text(names: Names, mine: TextRecord, other: TextRecord) -> Difference:
    """Two models on one domain.

    On the same tokens the losses are compared, in pairs of the same sequence, so that what makes a sequence hard for
    both cancels out. With different tokenizers the bits per byte are: in pairs of the same document where whole
    documents were read, and else as if the two errors were independent, which overstates the noise.
    """
    domain = mine.figures.domain
    if mine.figures.tokens_digest == other.figures.tokens_digest and mine.counts == other.counts:
        found = _paired(np.array(mine.losses, float), np.array(other.losses, float), np.array(mine.counts, float))
        return _difference(names, "text", domain, "loss", found, "less")
    paired = mine.text_digest is not None and mine.text_digest == other.text_digest
    if paired:
        found = _paired(_bits(mine), _bits(other), np.array(mine.unit_bytes, float))
    else:
        first, second = mine.figures.bits_per_byte_stderr, other.figures.bits_per_byte_stderr
        value = mine.figures.bits_per_byte - other.figures.bits_per_byte
        stderr = None if first is None or second is None else math.hypot(first, second)
        found = value, stderr, normal_interval(value, stderr)
    return _difference(names, "text", domain, "bits_per_byte", found, "less", paired=paired)


def _bits(record: TextRecord) -> Values:
    """``[documents]`` bits that each costs; they add up to the bits per byte times the bytes."""
    losses = np.array(record.losses, float)
    return losses * (record.figures.bits_per_byte * record.figures.bytes / losses.sum())


def compare_samples(
    names: Names, kind: Kind, of: str, quantity: str, mine: Sequence[float], other: Sequence[float],
    better: Better = "more",
) -> Difference:  # fmt: skip
    """Two models by a metric that is a mean over the same documents, in pairs."""
    found = _paired(np.array(mine, float), np.array(other, float), np.ones(len(mine)))
    return _difference(names, kind, of, quantity, found, better)


def compare_group(
    names: Names, of: str, quantity: str, members: Sequence[tuple[float, Sequence[float], Sequence[float]]],
    better: Better = "more",
) -> Difference:  # fmt: skip
    """Two models by a weighted mean over a group's tasks, each paired over its own documents.

    A member is its weight (they add up to 1), the model's values and the other's.
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
    """Two models in everything that both were measured in."""
    others = {(type(record), record.name): record for record in other}
    for record in mine:
        match record, others.get((type(record), record.name)):
            case TextRecord(), TextRecord() as its:
                yield compare_text(names, record, its)
            case TaskRecord(), TaskRecord() as its:
                yield from _tasks(names, record, its)
            case GenerationRecord(), GenerationRecord() as its:
                yield from _generations(names, record, its)


Samples = tuple[Sequence[float], Sequence[float]]


def _samples(
    task: str, metric: str, mine: Mapping[str, TaskValues], other: Mapping[str, TaskValues]
) -> Samples | None:
    """Both models' values for each document of a task; None where they were not asked the same questions."""
    values, its = mine.get(task), other.get(task)
    if values is None or its is None or values.documents_digest != its.documents_digest:
        return None
    each, theirs = values.samples.get(metric), its.samples.get(metric)
    return (each, theirs) if each and theirs else None


def _tasks(names: Names, mine: TaskRecord, other: TaskRecord) -> Iterator[Difference]:
    for row in mine.tasks:
        for metric, figure in row.metrics.items():
            better = figure.better or "more"
            if row.members is not None:
                yield from _group(names, row, metric, better, mine, other)
            elif found := _samples(row.task, metric, mine.values, other.values):
                yield compare_samples(names, "task", row.task, metric, *found, better)


def _group(
    names: Names, row: TaskFigures, metric: str, better: Better, mine: TaskRecord, other: TaskRecord
) -> Iterator[Difference]:
    """A group by its members' documents, where both models have the metric of all of them."""
    weights = row.weights or {}
    members = [(weights[task], _samples(task, metric, mine.values, other.values)) for task in weights]
    known = [(weight, *found) for weight, found in members if found is not None]
    if known and len(known) == len(members):
        yield compare_group(names, row.task, metric, known, better)


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
            values = mine.values[metric], other.values[metric]
            yield compare_samples(names, "generation", metric, metric, *values, figure.better)
