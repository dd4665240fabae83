"""From ratings to figures: who was preferred to whom, how sure that is, and how far raters agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from slm_ray.evaluate.compare import WITHIN_NOISE, ratio_interval, wilson_interval
from slm_ray.evaluate.rating.agreement import cohen_kappa, krippendorff_alpha
from slm_ray.evaluate.rating.bradley_terry import EXTRA_TIES, is_connected, log_strengths
from slm_ray.evaluate.rating.ratings import BOTH_BAD, TIE, Rating

_RESAMPLES = 1000
WILSON, BOOTSTRAP = "wilson", "bootstrap over prompts"
PREFERRED, NOT_PREFERRED = "preferred", "not preferred"


def _share_interval(by_prompt: Mapping[str, Sequence[float]]) -> tuple[tuple[float, float], str]:
    """The interval of a mean score, ratings of one prompt being one observation where there are several."""
    totals, counts = (np.array([of(scores) for scores in by_prompt.values()], float) for of in (sum, len))
    if counts.max() > 1:
        found = ratio_interval(totals, counts)
        if found is not None and found[0] < found[1]:
            return found, BOOTSTRAP
    # All alike, or one rater: as many observations as there are prompts.
    number = len(by_prompt)
    return wilson_interval(totals.sum() / counts.sum() * number, number), WILSON


def _pair(model: str, other: str, ratings: Sequence[Rating], same: int) -> dict[str, Any]:
    scores = [rating.score(model) for rating in ratings]
    row: dict[str, Any] = {
        "model": model, "other": other, "wins": scores.count(1.0), "ties": scores.count(0.5),
        "losses": scores.count(0.0), "both_bad": sum(rating.choice == BOTH_BAD for rating in ratings),
        "ratings": len(ratings), "prompts": len({rating.prompt for rating in ratings}),
        "raters": len({rating.rater for rating in ratings}), "same_text": same,
    }  # fmt: skip
    if not ratings:
        return row | {"win_rate": None, "interval": None, "interval_by": None, "verdict": None}
    by_prompt = defaultdict[str, list[float]](list)
    for rating, score in zip(ratings, scores, strict=True):
        by_prompt[rating.prompt].append(score)
    interval, method = _share_interval(by_prompt)
    sure = interval[0] > 0.5 or interval[1] < 0.5
    verdict = WITHIN_NOISE if not sure else PREFERRED if interval[0] > 0.5 else NOT_PREFERRED
    rate = sum(scores) / len(scores)
    return row | {"win_rate": rate, "interval": list(interval), "interval_by": method, "verdict": verdict}


def _strengths(models: Sequence[str], ratings: Sequence[Rating]) -> dict[str, Any]:
    """Bradley-Terry strengths of three models or more, with intervals from resampled prompts."""
    place = {model: number for number, model in enumerate(models)}
    prompts = sorted({rating.prompt for rating in ratings})
    wins = np.zeros((len(prompts), len(models), len(models)))
    for rating in ratings:
        score, at = rating.score(rating.left), prompts.index(rating.prompt)
        wins[at, place[rating.left], place[rating.right]] += score
        wins[at, place[rating.right], place[rating.left]] += 1 - score
    total = wins.sum(axis=0)
    met = total + total.T
    if not is_connected(met):
        return {"models": None, "note": "no strengths: some models were never compared with the others, even in steps"}
    extra = EXTRA_TIES * (met > 0)
    picks = np.random.default_rng(0).integers(0, len(prompts), (_RESAMPLES, len(prompts)))
    drawn = log_strengths(np.stack([wins[pick].sum(axis=0) for pick in picks]), extra)
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    found: list[dict[str, Any]] = [
        {"model": model, "log_strength": float(value), "interval": [float(low[at]), float(high[at])]}
        for at, (model, value) in enumerate(zip(models, log_strengths(total, extra), strict=True))
    ]
    found.sort(key=lambda row: -row["log_strength"])
    note = "a difference of 1.1 in log-strength is 3 to 1; one tie is added for each pair of models that met"
    if len(prompts) < 2:
        return {"models": [row | {"interval": None} for row in found], "note": note}
    return {"models": found, "note": note}


def _agreement(ratings: Sequence[Rating]) -> dict[str, Any]:
    """Of all raters; two texts that are equally good and two that are equally bad are both a tie here."""
    by_rater = defaultdict[str, dict[str, str]](dict)
    by_item = defaultdict[str, list[str]](list)
    for rating in ratings:
        category = TIE if rating.choice == BOTH_BAD else rating.choice
        by_rater[rating.rater][rating.item] = category
        by_item[rating.item].append(category)
    shared = [unit for unit in by_item.values() if len(unit) > 1]
    return {
        "raters": len(by_rater), "rated_by_several": len(shared), "krippendorff_alpha": krippendorff_alpha(shared),
        "cohen_kappa": cohen_kappa(*by_rater.values()) if len(by_rater) == 2 else None,
    }  # fmt: skip


def preferences(ratings: Sequence[Rating], key: Mapping[str, Any]) -> dict[str, Any]:
    """The preference table.

    Args:
        ratings: What raters said.
        key: The page's key.

    Returns:
        ``pairs`` (each pair of models: wins, ties and losses of the first, its win rate with ties as halves, the 95%
        interval and how it was made), ``strengths`` (three models and more) and ``agreement``.
    """
    models = [str(model) for model in key["models"]]
    rows = []
    for model, other in combinations(models, 2):
        mine = [rating for rating in ratings if {rating.left, rating.right} == {model, other}]
        same = sum(set(entry["models"]) == {model, other} for entry in key["same"])
        if mine or same:
            rows.append(_pair(model, other, mine, same))
    return {
        "page": key["page"], "run": key["run"], "models": models, "comparisons": len(key["items"]),
        "ratings": len(ratings), "pairs": rows, "agreement": _agreement(ratings),
        "strengths": _strengths(models, ratings) if len(models) > 2 else None,
    }  # fmt: skip
