"""Figures of generated texts against their definitions."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from slm_ray.evaluate.text_metrics import corpus_difference, corpus_figure, distinct, repetition, text_metrics, words
from tests.text_references import naive_bleu, naive_chrf

VOCABULARY = "the a small old grey donkey bridge river was went over under and saw".split()


def make_texts(seed, number=6, low=12, high=20):
    rng = random.Random(seed)
    return [" ".join(rng.choices(VOCABULARY[:8], k=rng.randint(low, high))) for _ in range(number)]


def measure(texts, references=None, tokens=None, ended=None):
    tokens = tokens or [list(range(len(text))) for text in texts]
    found = text_metrics(texts, tokens, ended or [True] * len(texts), references)
    return {
        name: {"value": one.figure.value, "interval": one.figure.interval, "values": one.values,
               "statistics": one.statistics, "signature": one.signature}
        for name, one in found.items()
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_bleu_is_that_of_its_definition(seed):
    texts, first, second = make_texts(seed), make_texts(seed + 10), make_texts(seed + 20)
    references = [[a, b] if i % 2 else [a] for i, (a, b) in enumerate(zip(first, second, strict=True))]
    texts[0], texts[1] = f"{first[0]} over and over", " ".join(second[1].split()[2:])  # so that long runs match
    found = measure(texts, references)["bleu"]
    assert found["value"] == pytest.approx(naive_bleu(texts, references))
    assert found["value"] == corpus_figure("bleu", found["statistics"])
    assert "tok:13a" in found["signature"]


@pytest.mark.parametrize("seed", range(2))
def test_chrf_is_that_of_its_definition(seed):
    texts, references = make_texts(seed), make_texts(seed + 10)
    found = measure(texts, [[reference] for reference in references])["chrf"]
    assert found["value"] == pytest.approx(naive_chrf(texts, references))
    assert found["value"] == pytest.approx(corpus_figure("chrf", found["statistics"]))
    assert "nc:6|nw:0" in found["signature"]


def test_a_copy_scores_a_hundred_and_silence_nothing():
    texts = make_texts(0)
    found = measure(texts, [[text] for text in texts])
    assert found["bleu"]["value"] == pytest.approx(100) and found["chrf"]["value"] == pytest.approx(100)
    silent = measure([""] * 3, [[text] for text in texts[:3]])
    assert silent["bleu"]["value"] == silent["chrf"]["value"] == silent["length"]["value"] == 0
    assert silent["distinct-1"]["value"] is None and silent["seq-rep-4"]["value"] == 0


def test_intervals_of_bleu_hold_its_value_and_shrink_with_more_texts():
    widths = []
    for number in (6, 96):
        texts, references = make_texts(1, number), make_texts(2, number)
        found = measure(texts, [[reference] for reference in references])["chrf"]
        low, high = found["interval"]
        assert low < found["value"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert measure(["a b"], [["a b"]])["bleu"]["interval"] is None


def test_a_paired_difference_is_of_corpora_and_its_noise_shrinks_by_pairing():
    references = [[text] for text in make_texts(5, 40)]
    good = [reference[0].replace("donkey", "horse") for reference in references]
    worse = [text.replace("grey", "green") for text in good]
    mine, other = measure(good, references)["bleu"], measure(worse, references)["bleu"]
    value, stderr, (low, high) = corpus_difference("bleu", mine["statistics"], other["statistics"])
    assert value == pytest.approx(mine["value"] - other["value"])
    assert 0 < low < value < high and stderr < (mine["interval"][1] - mine["interval"][0]) / 4
    assert corpus_difference("bleu", mine["statistics"], mine["statistics"]) == (0, 0, (0, 0))
    assert corpus_difference("bleu", mine["statistics"][:1], other["statistics"][:1])[1:] == (None, None)


def test_distinct_counts_different_ngrams_per_word_over_all_texts():
    texts = ["a b a b", "b a, c"]
    assert words(texts[1]) == ["b", "a", ",", "c"]
    assert distinct(texts, 1) == 4 / 8  # a, b, comma, c
    assert distinct(texts, 2) == 4 / 8  # ab, ba, a-comma, comma-c; none across texts
    assert distinct(["Nairobi ni mji", "Nairobi ni mji"], 1) == 3 / 6
    assert distinct([], 1) is None and distinct(["", "  "], 2) is None


@pytest.mark.parametrize("seed", range(2))
def test_repetition_is_the_share_of_four_grams_seen_before(seed):
    tokens = np.random.default_rng(seed).integers(0, 3, 60).tolist()
    seen, again = set(), 0
    for place in range(57):
        again += tuple(tokens[place : place + 4]) in seen
        seen.add(tuple(tokens[place : place + 4]))
    assert repetition(tokens) == pytest.approx(again / 57) and again
    assert repetition([1, 2, 3]) == repetition([]) == 0
    assert repetition([7] * 10) == pytest.approx(6 / 7)


def test_means_have_an_interval_and_a_value_per_prompt():
    found = measure(["x y", "z"], tokens=[[1] * 9, [1, 2, 3]], ended=[True, False])
    assert found["length"]["value"] == 6 and found["length"]["values"] == (9, 3)
    assert found["ended"]["value"] == 0.5 and found["ended"]["values"] == (1, 0)
    low, high = found["ended"]["interval"]
    assert 0 < low < 0.5 < high < 1
    assert found["seq-rep-4"]["values"] == (pytest.approx(5 / 6), 0)
    assert set(found) == {"distinct-1", "distinct-2", "seq-rep-4", "length", "ended"}
    assert all(math.isfinite(metric["value"]) for metric in found.values())
