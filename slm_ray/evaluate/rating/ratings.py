"""Raters' files, checked against the key of their page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, nearest
from slm_ray.evaluate.rating.pairs import KEY_FORMAT, opponents
from slm_ray.records.files import read_json

RATINGS_FORMAT = "slm_ray ratings 1"
LEFT, RIGHT, TIE, BOTH_BAD = "left", "right", "tie", "both_bad"
CHOICES = (LEFT, RIGHT, TIE, BOTH_BAD)


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One rater's word on one comparison.

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
    choice: str

    def score(self, model: str) -> float:
        """1 where the model was preferred, 0 where the other was, 1/2 where neither."""
        winner = {LEFT: self.left, RIGHT: self.right}.get(self.choice)
        return 0.5 if winner is None else float(winner == model)


def read_key(path: Path) -> dict[str, Any]:
    """Read a page's key.

    Raises:
        UserError: It is missing, cut short, or no key.
    """
    key = read_json(path)
    if not isinstance(key, dict) or key.get("format") != KEY_FORMAT:
        raise UserError(f"{path} is no key of a rating page: give the file that was written beside the page with --key")
    return key


def read_ratings(paths: Sequence[Path], key: Mapping[str, Any]) -> list[Rating]:
    """Read raters' files.

    Args:
        paths: The files that the page saved.
        key: The page's key.

    Raises:
        UserError: A file is missing, cut short or no ratings, belongs to another page, rates a comparison that the page
            does not have or one twice, or two files are one rater's.
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


def _of_file(path: Path, key: Mapping[str, Any]) -> Iterator[Rating]:
    saved = read_json(path)
    given = saved if isinstance(saved, dict) and saved.get("format") == RATINGS_FORMAT else {}
    if not isinstance(given.get("ratings"), list):
        raise UserError(f"{path} is no file of ratings: give one that the page's Save button wrote")
    if saved.get("page") != key["page"]:
        raise UserError(
            f"{path} rates page {saved.get('page')}, but the key is of page {key['page']}: give the other page's key "
            "with --key"
        )
    rater = str(saved.get("rater") or "").strip()
    if not rater:
        raise UserError(f"{path} does not say who rated: put a name into its field 'rater'")
    known, seen = opponents(key), set[str]()
    for entry in saved["ratings"]:
        item, choice = (entry.get("item"), entry.get("choice")) if isinstance(entry, dict) else (None, None)
        if not isinstance(item, str) or item not in known:
            raise UserError(f"{path} rates comparison {item}, but its page has none of that number: it was edited")
        if choice not in CHOICES:
            raise UserError(f"{path}: comparison {item} is rated '{choice}': {nearest(str(choice), CHOICES)}")
        if item in seen:
            raise UserError(f"{path} rates comparison {item} twice: keep one of the two")
        seen.add(item)
        prompt, left, right = known[item]
        yield Rating(rater=rater, item=item, prompt=prompt, left=left, right=right, choice=choice)
