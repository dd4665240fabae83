"""Records of a blinded rating: the page's key, a rater's file, and the table of preferences."""

from __future__ import annotations

from typing import ClassVar, Literal

from slm_ray.records.base import Part, Record

Choice = Literal["left", "right", "tie", "both_bad"]


class KeyItem(Part):
    """Who wrote the two texts of one comparison."""

    item: str
    prompt: str
    left_model: str
    right_model: str


class RatingKey(Record):
    """Who wrote what on a page; kept from the raters."""

    FILE: ClassVar[str] = "rating_key.json"
    page: str  # The digest of everything on the page
    run: str  # The evaluation's folder
    seed: int  # Of the order and the sides
    models: tuple[str, ...]
    items: tuple[KeyItem, ...]


class RatedItem(Part):
    """A rater's choice in one comparison."""

    item: str
    choice: Choice


class RaterFile(Record):
    """What the page's Save button writes."""

    FILE: ClassVar[str] = "ratings.json"
    page: str
    rater: str
    ratings: tuple[RatedItem, ...]


class PairPreferences(Part):
    """One pair of models; ``wins`` are the first one's, ``both_bad`` is how many of the ties were two bad texts."""

    model: str
    other: str
    wins: int
    ties: int
    losses: int
    both_bad: int
    ratings: int
    prompts: int
    win_rate: float
    interval: tuple[float, float]
    verdict: str


class Strength(Part):
    """A model's Bradley-Terry log-strength."""

    model: str
    log_strength: float
    interval: tuple[float, float] | None


class Strengths(Part):
    """Bradley-Terry strengths, the strongest first; None where they cannot be told from each other's comparisons."""

    models: tuple[Strength, ...] | None
    note: str


class Agreement(Part):
    """How far raters agree beyond chance."""

    raters: int
    rated_by_several: int
    krippendorff_alpha: float | None


class Preferences(Record):
    """The table that ratings make."""

    FILE: ClassVar[str] = "preferences.json"
    page: str
    run: str
    models: tuple[str, ...]
    comparisons: int
    ratings: int
    pairs: tuple[PairPreferences, ...]
    agreement: Agreement
    strengths: Strengths | None
