"""From raters' files to the table of preferences: who was preferred to whom, how sure that is, how far raters agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slm_ray.config.columns import aligned
from slm_ray.config.errors import UserError
from slm_ray.evaluate.intervals import ratio_interval, wilson_interval
from slm_ray.records.base import parse_record
from slm_ray.records.files import read_json
from slm_ray.records.rating import (
    Agreement,
    Choice,
    PairPreferences,
    Preferences,
    RaterFile,
    RatingKey,
    Strength,
    Strengths,
)

Matrix = npt.NDArray[np.float64]
_RESAMPLES = 1000
_ROUNDS, _CLOSE = 10_000, 1e-10


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One rater's choice in one comparison: its number on the page, the prompt's id, the models left and right."""

    rater: str
    item: str
    prompt: str
    left: str
    right: str
    choice: Choice

    def score(self, model: str) -> float:
        """1 where the model was preferred, 0 where the other was, 1/2 where neither."""
        winner = {"left": self.left, "right": self.right}.get(self.choice)
        return 0.5 if winner is None else float(winner == model)


def read_ratings(paths: Sequence[Path], key: RatingKey) -> list[Rating]:
    """Read raters' files."""
    found: list[Rating] = []
    places: dict[tuple[str, str], Path] = {}
    for path in paths:
        for rating in _of_file(path, key):
            if before := places.get((rating.rater, rating.item)):
                again = f"in {before} and again in {path}: give one file per rater, and one choice per comparison"
                raise UserError(f"{rating.rater} rated comparison {rating.item} {again}")
            places[rating.rater, rating.item] = path
            found.append(rating)
    if not found:
        raise UserError("there is not one rating in the files: rate, and press Save on the page")
    return found


def _of_file(path: Path, key: RatingKey) -> Iterator[Rating]:
    saved = parse_record(RaterFile, read_json(path), str(path))
    if saved.page != key.page:
        raise UserError(
            f"{path} rates page {saved.page}, but the key is of page {key.page}: give the other page's key with --key"
        )
    if not saved.rater.strip():
        raise UserError(f"{path} does not say who rated: put a name into its field 'rater'")
    known = {item.item: item for item in key.items}
    for entry in saved.ratings:
        shown = known.get(entry.item)
        if shown is None:
            raise UserError(f"{path} rates comparison {entry.item}, which its page does not have: it was edited")
        yield Rating(
            rater=saved.rater.strip(), item=entry.item, prompt=shown.prompt, left=shown.left_model,
            right=shown.right_model, choice=entry.choice,
        )  # fmt: skip


def preferences(ratings: Sequence[Rating], key: RatingKey) -> Preferences:
    """The table: wins, ties and losses of each pair of models; three models and more have strengths as well."""
    rows = []
    for model, other in combinations(key.models, 2):
        mine = [rating for rating in ratings if {rating.left, rating.right} == {model, other}]
        if mine:
            rows.append(_pair(model, other, mine))
    return Preferences(
        page=key.page, run=key.run, models=key.models, comparisons=len(key.items), ratings=len(ratings),
        pairs=tuple(rows), agreement=_agreement(ratings),
        strengths=_strengths(key.models, ratings) if len(key.models) > 2 else None,
    )  # fmt: skip


def _pair(model: str, other: str, ratings: Sequence[Rating]) -> PairPreferences:
    """The win rate with ties as halves; ratings of one prompt are one observation where there are several."""
    by_prompt = defaultdict[str, list[float]](list)
    for rating in ratings:
        by_prompt[rating.prompt].append(rating.score(model))
    scores = [score for one in by_prompt.values() for score in one]
    totals, counts = (np.array([of(one) for one in by_prompt.values()], float) for of in (sum, len))
    rate, prompts = sum(scores) / len(scores), len(by_prompt)
    # All alike, or one rater: as many observations as there are prompts.
    interval = wilson_interval(rate * prompts, prompts)
    if counts.max() > 1:
        found = ratio_interval(totals, counts)
        interval = found if found is not None and found[0] < found[1] else interval
    sure = "preferred" if interval[0] > 0.5 else "not preferred"
    return PairPreferences(
        model=model, other=other, wins=scores.count(1.0), ties=scores.count(0.5), losses=scores.count(0.0),
        both_bad=sum(rating.choice == "both_bad" for rating in ratings), ratings=len(ratings), prompts=prompts,
        win_rate=rate, interval=interval, verdict="within the noise" if interval[0] <= 0.5 <= interval[1] else sure,
    )  # fmt: skip


def log_strengths(wins: Matrix, extra: Matrix) -> Matrix:
    """Bradley-Terry log-strengths (1952) ``[..., models]`` with mean 0: i beats j with chance 1 / (1 + exp(s_j - s_i)).

    The likeliest ones, found by the MM algorithm (Hunter 2004, Annals of Statistics 32). ``wins`` is ``[..., models,
    models]``, how often the row's model was preferred to the column's, a tie half a win for each. ``extra`` are ties
    that are added, so that who never lost has a finite strength (a prior, as in Caron and Doucet 2012, arXiv
    1011.1761); 0 where two never met.
    """
    won = wins + extra / 2
    met = won + won.swapaxes(-1, -2)
    total = won.sum(axis=-1)
    logs = np.zeros(total.shape)
    for _ in range(_ROUNDS):
        strengths = np.exp(logs)
        pull = (met / (strengths[..., :, None] + strengths[..., None, :])).sum(axis=-1)
        new = np.log(total / pull)
        new -= new.mean(axis=-1, keepdims=True)
        moved, logs = float(np.abs(new - logs).max()), new
        if moved < _CLOSE:
            break
    return logs


def _strengths(models: Sequence[str], ratings: Sequence[Rating]) -> Strengths:
    """Bradley-Terry strengths of three models or more, with intervals from resampled prompts."""
    place = {model: number for number, model in enumerate(models)}
    prompts = sorted({rating.prompt for rating in ratings})
    wins = np.zeros((len(prompts), len(models), len(models)))
    for rating in ratings:
        score, at = rating.score(rating.left), prompts.index(rating.prompt)
        wins[at, place[rating.left], place[rating.right]] += score
        wins[at, place[rating.right], place[rating.left]] += 1 - score
    total = wins.sum(axis=0)
    extra = (total + total.T > 0).astype(float)
    if not (np.linalg.matrix_power(extra + np.eye(len(models)), len(models)) > 0).all():
        note = "no strengths: some models were never compared with the others, even in steps"
        return Strengths(models=None, note=note)
    picks = np.random.default_rng(0).integers(0, len(prompts), (_RESAMPLES, len(prompts)))
    drawn = log_strengths(np.stack([wins[pick].sum(axis=0) for pick in picks]), extra)
    ends = np.percentile(drawn, (2.5, 97.5), axis=0).T.tolist()
    found = [
        Strength(model=model, log_strength=float(value), interval=tuple(ends[at]) if len(prompts) > 1 else None)
        for at, (model, value) in enumerate(zip(models, log_strengths(total, extra), strict=True))
    ]
    note = "a difference of 1.1 in log-strength is 3 to 1; one tie is added for each pair of models that met"
    return Strengths(models=tuple(sorted(found, key=lambda row: -row.log_strength)), note=note)


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for categories (Content Analysis, 1980): 1 is full agreement, 0 that of chance.

    A unit is the ratings of one thing, however many; those with one rating tell nothing. None where nothing was rated
    twice, or only one category was ever used.
    """
    counts = [Counter(unit) for unit in units if len(unit) > 1]
    whole = sum(counts, Counter[str]())
    number = whole.total()
    expected = number**2 - sum(count**2 for count in whole.values())
    if not number or not expected:
        return None
    observed = sum((one.total() ** 2 - sum(c**2 for c in one.values())) / (one.total() - 1) for one in counts)
    return 1 - (number - 1) * observed / expected


def _agreement(ratings: Sequence[Rating]) -> Agreement:
    """Of all raters; two texts that are equally good and two that are equally bad are both a tie here."""
    by_item = defaultdict[str, list[str]](list)
    for rating in ratings:
        by_item[rating.item].append("tie" if rating.choice == "both_bad" else rating.choice)
    shared = [unit for unit in by_item.values() if len(unit) > 1]
    raters = len({rating.rater for rating in ratings})
    return Agreement(raters=raters, rated_by_several=len(shared), krippendorff_alpha=krippendorff_alpha(shared))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def preferences_text(table: Preferences) -> str:
    """The table for people."""
    rows = [["model", "against", "wins", "ties", "losses", "prompts", "win rate", "95% interval", ""]]
    for pair in table.pairs:
        counts = [str(number) for number in (pair.wins, pair.ties, pair.losses, pair.prompts)]
        interval = " to ".join(map(_percent, pair.interval))
        rows.append([pair.model, pair.other, *counts, _percent(pair.win_rate), interval, pair.verdict])
    lines = [f"{table.ratings} ratings of {table.comparisons} comparisons", "", *aligned(rows, left={0, 1, 8})]
    lines.append("(a tie, good or bad, is half a win; a difference is sure where the interval is clear of 50%)")
    if bad := sum(pair.both_bad for pair in table.pairs):
        lines.append(f"{bad} of the ties: both bad")
    if table.strengths and table.strengths.models:
        rows = [["model", "log-strength", "95% interval"]]
        for one in table.strengths.models:
            interval = " to ".join(f"{end:+.2f}" for end in one.interval) if one.interval else "–"
            rows.append([one.model, f"{one.log_strength:+.2f}", interval])
        lines += ["", "Bradley-Terry strengths:", *aligned(rows)]
    if table.strengths:
        lines.append(f"({table.strengths.note})")
    found = table.agreement
    alpha = found.krippendorff_alpha
    said = "one rater: agreement is not known"
    if found.raters > 1:
        known = "cannot be told from these" if alpha is None else f"Krippendorff's alpha {alpha:.2f}"
        said = f"{found.rated_by_several} comparisons rated by several of {found.raters} raters: agreement {known}"
    return "\n".join([*lines, "", said]) + "\n"
