"""Figures of generated texts: likeness to references, variety, repetition, length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.helpers import extract_all_char_ngrams

from slm_ray.evaluate.intervals import Interval, mean_interval
from slm_ray.records.measurement import Better, Figure

BLEU_NAME, CHRF_NAME = "bleu", "chrf"
_RESAMPLES = 1000
_REPEATED = 4  # the n-grams of seq-rep-4
_WORD = re.compile(r"\w+|[^\w\s]")
_BLEU, _CHRF = BLEU(), CHRF()

Statistics = tuple[tuple[int, ...], ...]
"""``[texts, counts]`` of BLEU or chrF: a corpus's figure is made from their sums."""


@dataclass(frozen=True)
class TextMetric:
    """A metric: its figure, a value per prompt for comparisons in pairs of prompts; counts of BLEU and chrF."""

    figure: Figure
    values: tuple[float, ...] | None = None
    statistics: Statistics | None = None
    signature: str | None = None


def _bleu_counts(text: str, references: Sequence[str]) -> tuple[int, ...]:
    """Words of the text and of the nearest reference, then matching and possible 1- to 4-grams."""
    found = _BLEU.corpus_score([text], [[reference] for reference in references])
    return (found.sys_len, found.ref_len, *map(int, found.counts), *map(int, found.totals))


def _chrf_counts(text: str, references: Sequence[str]) -> tuple[int, ...]:
    """For 1- to 6-grams of characters: how many the text has, the best reference has, and both have."""
    mine, found = extract_all_char_ngrams(text, 6), []
    for reference in references:
        counts: list[int] = []
        for grams, others in zip(mine, extract_all_char_ngrams(reference, 6), strict=True):
            counts += [grams.total() if others else 0, others.total(), (grams & others).total()]
        found.append(tuple(counts))
    return max(found, key=_chrf_score)


def _bleu_score(totals: Sequence[int]) -> float:
    found = BLEU.compute_bleu(
        correct=list(totals[2:6]), total=list(totals[6:]), sys_len=totals[0], ref_len=totals[1], smooth_method="exp"
    )
    return float(found.score)


def _chrf_score(totals: Sequence[int]) -> float:
    """chrF2 (Popović 2015, W15-3049) over the n-gram lengths that both sides have."""
    orders = [totals[at : at + 3] for at in range(0, len(totals), 3)]
    known = [(both / mine, both / other) for mine, other, both in orders if mine and other]
    if not known or not any(precision for precision, _ in known):
        return 0.0
    precision, recall = (sum(column) / len(known) for column in zip(*known, strict=True))
    return 100 * 5 * precision * recall / (4 * precision + recall)


_SCORES = {BLEU_NAME: _bleu_score, CHRF_NAME: _chrf_score}
_COUNTS = {BLEU_NAME: _bleu_counts, CHRF_NAME: _chrf_counts}


def corpus_figure(name: str, statistics: Statistics) -> float:
    """BLEU or chrF of a corpus, from the counts ``[texts, counts]`` of its texts."""
    return _SCORES[name]([sum(column) for column in zip(*statistics, strict=True)])


def _resampled(name: str, statistics: Statistics) -> np.ndarray:
    """``[resamples]`` figures of corpora drawn from a corpus (Koehn 2004, W04-3250), the same draws every time."""
    number = len(statistics)
    picks = np.random.default_rng(0).integers(0, number, (_RESAMPLES, number))
    totals = np.asarray(statistics, dtype=np.int64)[picks].sum(axis=1)
    return np.array([_SCORES[name](row) for row in totals.tolist()])


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def corpus_difference(
    name: str, mine: Statistics, other: Statistics
) -> tuple[float, float | None, Interval | None]:  # fmt: skip
    """The difference of two models' BLEU or chrF on the same prompts, resampled in pairs.

    Returns ``mine - other``, its standard error and its 95% interval; these two are None for one text.
    """
    value = corpus_figure(name, mine) - corpus_figure(name, other)
    if len(mine) < 2:
        return value, None, None
    gaps = _resampled(name, mine) - _resampled(name, other)
    return value, float(gaps.std(ddof=1)), _percentiles(gaps)


def _likeness(name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> TextMetric:
    counts = tuple(_COUNTS[name](text, row) for text, row in zip(texts, references, strict=True))
    corpus: Any = _BLEU if name == BLEU_NAME else _CHRF
    # sacrebleu wants all first references, all second ones, …; where a text has fewer, there is None.
    most = max(map(len, references))
    streams = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
    interval = _percentiles(_resampled(name, counts)) if len(counts) > 1 else None
    figure = Figure(value=float(corpus.corpus_score(texts, streams).score), better="more", interval=interval)
    return TextMetric(figure, None, counts, str(corpus.get_signature()))


def words(text: str) -> list[str]:
    """Words, and each mark of punctuation by itself: the same for models of any tokenizer."""
    return _WORD.findall(text)


def _ngrams(items: Sequence[Any], length: int) -> list[tuple[Any, ...]]:
    return [tuple(items[start : start + length]) for start in range(len(items) - length + 1)]


def distinct(texts: Sequence[str], length: int) -> float | None:
    """distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams of words in all texts, per word."""
    split = [words(text) for text in texts]
    total = sum(map(len, split))
    return len({gram for row in split for gram in _ngrams(row, length)}) / total if total else None


def repetition(tokens: Sequence[int]) -> float:
    """seq-rep-4 (Welleck et al. 2019, arXiv 1908.04319): the share of a text's 4-grams that were there before."""
    grams = _ngrams(tokens, _REPEATED)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mean(values: Sequence[float], better: Better | None) -> TextMetric:
    numbers = tuple(map(float, values))
    interval = mean_interval(np.array(numbers))
    return TextMetric(Figure(value=float(np.mean(numbers)), better=better, interval=interval), numbers)


def text_metrics(
    texts: Sequence[str], tokens: Sequence[Sequence[int]], ended: Sequence[bool],
    references: Sequence[Sequence[str]] | None,
) -> Mapping[str, TextMetric]:  # fmt: skip
    """All figures of what a model wrote, by name; without references there is no BLEU and chrF."""
    found: dict[str, TextMetric] = {}
    if references is not None:
        found = {name: _likeness(name, texts, references) for name in (BLEU_NAME, CHRF_NAME)}
    # A resampled set of texts repeats everything in it: the bootstrap says nothing about distinct n-grams.
    variety = {f"distinct-{n}": TextMetric(Figure(value=distinct(texts, n), better="more")) for n in (1, 2)}
    return found | variety | {
        f"seq-rep-{_REPEATED}": _mean([repetition(row) for row in tokens], "less"),
        "length": _mean([len(row) for row in tokens], None),
        "ended": _mean([float(end) for end in ended], None),
    }  # fmt: skip
