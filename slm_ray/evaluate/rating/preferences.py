"""From raters' files to the table of preferences: who was preferred to whom, how sure that is, how far raters agree."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from slm_ray.config.columns import aligned
from slm_ray.config.errors import UserError
from slm_ray.evaluate.intervals import Interval, ratio_interval, wilson_interval
from slm_ray.evaluate.rating.statistics import (
    EXTRA_TIES,
    cohen_kappa,
    is_connected,
    krippendorff_alpha,
    log_strengths,
)
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

_RESAMPLES = 1000
WILSON, BOOTSTRAP = "wilson", "bootstrap over prompts"
UNKNOWN = "–"


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One rater's choice in one comparison.

    Attributes:
        rater: The rater's name.
        item: The comparison's number on the page.
        prompt: The prompt's id.
        left: The model on the left.
        right: The model on the right.
        choice: ``left``, ``right``, ``tie`` or ``both_bad``.
    """

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
    """Read raters' files.

    Raises:
        UserError: A file is missing or damaged, belongs to another page, rates a comparison that the page does not have
            or one twice, or two files are one rater's.
    """
    found: list[Rating] = []
    places: dict[tuple[str, str], Path] = {}
    for path in paths:
        for rating in _of_file(path, key):
            before = places.setdefault((rating.rater, rating.item), path)
            if before != path:
                raise UserError(
                    f"{rating.rater} rated comparison {rating.item} in {before} and again in {path}: "
                    "give one file per rater"
                )
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
    rater = saved.rater.strip()
    if not rater:
        raise UserError(f"{path} does not say who rated: put a name into its field 'rater'")
    known, seen = {item.item: item for item in key.items}, set[str]()
    for entry in saved.ratings:
        if entry.item not in known:
            raise UserError(f"{path} rates comparison {entry.item}, which its page does not have: it was edited")
        if entry.item in seen:
            raise UserError(f"{path} rates comparison {entry.item} twice: keep one of the two")
        seen.add(entry.item)
        shown = known[entry.item]
        yield Rating(
            rater=rater, item=entry.item, prompt=shown.prompt, left=shown.left_model, right=shown.right_model,
            choice=entry.choice,
        )  # fmt: skip


def preferences(ratings: Sequence[Rating], key: RatingKey) -> Preferences:
    """The preference table.

    Each pair of models has the wins, ties and losses of the first and its win rate with ties as halves; three models
    and more have strengths as well.
    """
    rows = []
    for model, other in combinations(key.models, 2):
        mine = [rating for rating in ratings if {rating.left, rating.right} == {model, other}]
        same = sum(set(entry.models) == {model, other} for entry in key.same)
        if mine or same:
            rows.append(_pair(model, other, mine, same))
    return Preferences(
        page=key.page, run=key.run, models=key.models, comparisons=len(key.items), ratings=len(ratings),
        pairs=tuple(rows), agreement=_agreement(ratings),
        strengths=_strengths(key.models, ratings) if len(key.models) > 2 else None,
    )  # fmt: skip


def _share_interval(by_prompt: Mapping[str, Sequence[float]]) -> tuple[Interval, str]:
    """The interval of a mean score, ratings of one prompt being one observation where there are several."""
    totals, counts = (np.array([of(scores) for scores in by_prompt.values()], float) for of in (sum, len))
    if counts.max() > 1:
        found = ratio_interval(totals, counts)
        if found is not None and found[0] < found[1]:
            return found, BOOTSTRAP
    # All alike, or one rater: as many observations as there are prompts.
    number = len(by_prompt)
    return wilson_interval(totals.sum() / counts.sum() * number, number), WILSON


def _pair(model: str, other: str, ratings: Sequence[Rating], same: int) -> PairPreferences:
    scores = [rating.score(model) for rating in ratings]
    row = PairPreferences(
        model=model, other=other, wins=scores.count(1.0), ties=scores.count(0.5), losses=scores.count(0.0),
        both_bad=sum(rating.choice == "both_bad" for rating in ratings), ratings=len(ratings),
        prompts=len({rating.prompt for rating in ratings}), raters=len({rating.rater for rating in ratings}),
        same_text=same,
    )  # fmt: skip
    if not ratings:
        return row
    by_prompt = defaultdict[str, list[float]](list)
    for rating, score in zip(ratings, scores, strict=True):
        by_prompt[rating.prompt].append(score)
    interval, method = _share_interval(by_prompt)
    sure = "preferred" if interval[0] > 0.5 else "not preferred"
    verdict = "within the noise" if interval[0] <= 0.5 <= interval[1] else sure
    found = {"win_rate": sum(scores) / len(scores), "interval": interval, "interval_by": method, "verdict": verdict}
    return row.model_copy(update=found)


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
    met = total + total.T
    if not is_connected(met):
        note = "no strengths: some models were never compared with the others, even in steps"
        return Strengths(models=None, note=note)
    extra = EXTRA_TIES * (met > 0)
    picks = np.random.default_rng(0).integers(0, len(prompts), (_RESAMPLES, len(prompts)))
    drawn = log_strengths(np.stack([wins[pick].sum(axis=0) for pick in picks]), extra)
    ends = np.percentile(drawn, (2.5, 97.5), axis=0).T.tolist()
    found = [
        Strength(model=model, log_strength=float(value), interval=tuple(ends[at]) if len(prompts) > 1 else None)
        for at, (model, value) in enumerate(zip(models, log_strengths(total, extra), strict=True))
    ]
    note = "a difference of 1.1 in log-strength is 3 to 1; one tie is added for each pair of models that met"
    return Strengths(models=tuple(sorted(found, key=lambda row: -row.log_strength)), note=note)


def _agreement(ratings: Sequence[Rating]) -> Agreement:
    """Of all raters; two texts that are equally good and two that are equally bad are both a tie here."""
    by_rater = defaultdict[str, dict[str, str]](dict)
    by_item = defaultdict[str, list[str]](list)
    for rating in ratings:
        category = "tie" if rating.choice == "both_bad" else rating.choice
        by_rater[rating.rater][rating.item] = category
        by_item[rating.item].append(category)
    shared = [unit for unit in by_item.values() if len(unit) > 1]
    return Agreement(
        raters=len(by_rater), rated_by_several=len(shared), krippendorff_alpha=krippendorff_alpha(shared),
        cohen_kappa=cohen_kappa(*by_rater.values()) if len(by_rater) == 2 else None,
    )  # fmt: skip


_COLUMNS = (
    "model", "other", "wins", "ties", "losses", "both_bad", "ratings", "prompts", "raters", "same_text", "win_rate",
    "interval_low", "interval_high", "interval_by", "verdict",
)  # fmt: skip


def preferences_csv(table: Preferences) -> str:
    """A row per pair of models, with full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for pair in table.pairs:
        low, high = pair.interval or (None, None)
        row = pair.to_json() | {"interval_low": low, "interval_high": high}
        writer.writerow([row[name] for name in _COLUMNS])
    return buffer.getvalue()


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _pair_rows(table: Preferences) -> list[list[str]]:
    rows = [["model", "against", "wins", "ties", "losses", "prompts", "win rate", "95% interval", ""]]
    for pair in table.pairs:
        rate, interval = UNKNOWN, UNKNOWN
        if pair.win_rate is not None and pair.interval is not None:
            rate, interval = _percent(pair.win_rate), " to ".join(map(_percent, pair.interval))
        counts = [str(number) for number in (pair.wins, pair.ties, pair.losses, pair.prompts)]
        rows.append([pair.model, pair.other, *counts, rate, interval, pair.verdict or "not rated"])
    return rows


def _strength_lines(strengths: Strengths) -> list[str]:
    if strengths.models is None:
        return ["", strengths.note]
    rows = [["model", "log-strength", "95% interval", ""]]
    for one in strengths.models:
        interval = " to ".join(f"{end:+.2f}" for end in one.interval) if one.interval else UNKNOWN
        rows.append([one.model, f"{one.log_strength:+.2f}", interval, ""])
    return ["", "Bradley-Terry strengths:", *aligned(rows, left={0, 3}), f"({strengths.note})"]


def _agreement_line(agreement: Agreement) -> str:
    if agreement.raters < 2:
        return "one rater: agreement is not known"
    figures = (("Krippendorff's alpha", agreement.krippendorff_alpha), ("Cohen's kappa", agreement.cohen_kappa))
    known = [f"{name} {value:.2f}" for name, value in figures if value is not None]
    shared = f"{agreement.rated_by_several} comparisons rated by several of {agreement.raters} raters"
    return f"{shared}: {', '.join(known) or 'agreement beyond chance cannot be told from these'}"


def preferences_text(table: Preferences) -> str:
    """The table for people."""
    lines = [f"{table.ratings} ratings of {table.comparisons} comparisons", ""]
    lines += aligned(_pair_rows(table), left={0, 1, 8})
    lines.append("(a tie, good or bad, is half a win; a difference is sure where the interval is clear of 50%)")
    bad = sum(pair.both_bad for pair in table.pairs)
    same = sum(pair.same_text for pair in table.pairs)
    if bad:
        lines.append(f"{bad} of the ties: both bad")
    if same:
        lines.append(f"not shown and not counted: {same} times two models wrote the same text")
    if table.strengths:
        lines += _strength_lines(table.strengths)
    return "\n".join([*lines, "", _agreement_line(table.agreement)]) + "\n"
