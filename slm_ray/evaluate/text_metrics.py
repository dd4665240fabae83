"""Figures of generated texts: likeness to references, variety, repetition, length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from slm_ray.evaluate.compare import LESS, MORE, mean_interval

BLEU_NAME, CHRF_NAME = "bleu", "chrf"
_RESAMPLES = 1000
_REPEATED = 4  # the n-grams of seq-rep-4
_WORD = re.compile(r"\w+|[^\w\s]")

Metric = dict[str, Any]


@cache
def _scorer(name: str) -> Any:
    return BLEU() if name == BLEU_NAME else CHRF()


@cache
def _sentence_scorer(name: str) -> Any:
    # Effective order: a short text without a matching 4-gram is not 0 for that alone (sacrebleu's own advice).
    return BLEU(effective_order=True) if name == BLEU_NAME else CHRF()


def corpus_figure(name: str, statistics: Sequence[Sequence[int]]) -> float:
    """BLEU or chrF of a corpus, from what sacrebleu counts in each of its texts.

    Args:
        name: ``bleu`` or ``chrf``.
        statistics: ``[texts, counts]``: lengths, matching and possible n-grams, as sacrebleu orders them.
    """
    return float(_scorer(name)._aggregate_and_compute([list(row) for row in statistics]).score)


def _resampled(name: str, statistics: Sequence[Sequence[int]], picks: np.ndarray) -> np.ndarray:
    """``[resamples]`` figures of corpora that are drawn from a corpus; picks ``[resamples, texts]``."""
    totals = np.asarray(statistics, dtype=np.int64)[picks].sum(axis=1)
    return np.array([_scorer(name)._compute_score_from_stats(row).score for row in totals.tolist()])


def _picks(number: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, number, (_RESAMPLES, number))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def corpus_interval(name: str, statistics: Sequence[Sequence[int]]) -> tuple[float, float] | None:
    """The 95% bootstrap interval of a corpus's BLEU or chrF, texts resampled (Koehn 2004, W04-3250); None for one text.

    Args:
        name: ``bleu`` or ``chrf``.
        statistics: ``[texts, counts]``, see :func:`corpus_figure`.
    """
    if len(statistics) < 2:
        return None
    return _percentiles(_resampled(name, statistics, _picks(len(statistics))))


def corpus_difference(
    name: str, mine: Sequence[Sequence[int]], other: Sequence[Sequence[int]]
) -> tuple[float, float | None, tuple[float, float] | None]:
    """The difference of two models' BLEU or chrF on the same prompts, resampled in pairs (Koehn 2004, W04-3250).

    Args:
        name: ``bleu`` or ``chrf``.
        mine: ``[texts, counts]`` of the model.
        other: Of the one it is compared with, the same prompts in the same order.

    Returns:
        ``mine - other``, its standard error and its 95% interval; these two are None for one text.
    """
    value = corpus_figure(name, mine) - corpus_figure(name, other)
    if len(mine) < 2:
        return value, None, None
    picks = _picks(len(mine))
    gaps = _resampled(name, mine, picks) - _resampled(name, other, picks)
    return value, float(gaps.std(ddof=1)), _percentiles(gaps)


def _likeness(name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    # sacrebleu wants all first references, all second ones, …; where a text has fewer, there is None.
    most = max(map(len, references))
    streams = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
    counts = [list(map(int, row)) for row in _scorer(name)._extract_corpus_statistics(texts, streams)]
    sentences = [_sentence_scorer(name).sentence_score(text, row) for text, row in zip(texts, references, strict=True)]
    corpus = _scorer(name).corpus_score(texts, streams)
    return {
        "value": float(corpus.score), "better": MORE, "interval": corpus_interval(name, counts),
        "values": [float(sentence.score) for sentence in sentences], "statistics": counts,
        "signature": str(_scorer(name).get_signature()),
    }  # fmt: skip


def words(text: str) -> list[str]:
    """Words, and each mark of punctuation by itself: the same for models of any tokenizer."""
    return _WORD.findall(text)


def ngrams(items: Sequence[Any], length: int) -> list[tuple[Any, ...]]:
    """All runs of ``length`` neighbours."""
    return [tuple(items[start : start + length]) for start in range(len(items) - length + 1)]


def distinct(texts: Sequence[str], length: int) -> float | None:
    """distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams of words in all texts, per word; None without.

    Args:
        texts: What a model wrote, for all prompts.
        length: 1 or 2, …
    """
    split = [words(text) for text in texts]
    total = sum(map(len, split))
    return len({gram for row in split for gram in ngrams(row, length)}) / total if total else None


def repetition(tokens: Sequence[int], length: int = _REPEATED) -> float:
    """seq-rep-n (Welleck et al. 2019, arXiv 1908.04319): the share of a text's n-grams that were there before.

    Args:
        tokens: The model's tokens of one text.
        length: Of the n-grams; a text with none of them repeats nothing.
    """
    grams = ngrams(tokens, length)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _mean(values: Sequence[float], better: str | None) -> Metric:
    return {
        "value": float(np.mean(values)), "better": better, "interval": mean_interval(np.array(values, float)),
        "values": list(map(float, values)),
    }  # fmt: skip


def _variety(texts: Sequence[str], length: int) -> Metric:
    # A resampled set of texts says everything in it twice: the bootstrap says nothing of what is distinct.
    return {"value": distinct(texts, length), "better": MORE, "interval": None, "values": None}


def text_metrics(
    texts: Sequence[str],
    tokens: Sequence[Sequence[int]],
    ended: Sequence[bool],
    references: Sequence[Sequence[str]] | None,
) -> Mapping[str, Metric]:
    """All figures of what a model wrote.

    Args:
        texts: One per prompt.
        tokens: Of each text, without the token that ended it.
        ended: Whether the model ended the text itself.
        references: Of each prompt, one or more; None for no BLEU and chrF.

    Returns:
        Name to ``value``, ``better`` (``more``, ``less`` or None), 95% ``interval`` and ``values``, one per prompt,
        where these are what models are compared by. For BLEU and chrF, the value is the corpus's, ``values`` are those
        of single texts, and ``statistics`` are the counts that the corpus's is made from.
    """
    found: dict[str, Metric] = {}
    if references is not None:
        found = {name: _likeness(name, texts, references) for name in (BLEU_NAME, CHRF_NAME)}
    return found | {
        "distinct-1": _variety(texts, 1),
        "distinct-2": _variety(texts, 2),
        f"seq-rep-{_REPEATED}": _mean([repetition(row) for row in tokens], LESS),
        "length": _mean([len(row) for row in tokens], None),
        "ended": _mean([float(end) for end in ended], None),
    }
