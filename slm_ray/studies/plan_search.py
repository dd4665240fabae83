"""The ``search`` of a sweep file: which options are drawn from which ranges, and how often."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import model_validator

from slm_ray.config.base import Config, build_section, option

Varied = Callable[[str, str], str | None]


class Range(Config):
    """Where a searched option is drawn from: a range, or a few choices."""

    low: float = option(0.0, "the least value")
    high: float = option(0.0, "the greatest")
    log: bool = option(False, "draw uniformly in the logarithm")
    whole: bool = option(False, "whole numbers only")
    choices: tuple[Any, ...] = option((), "the choices, instead of a range")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.choices and (self.low >= self.high or (self.log and self.low <= 0)):
            rule = "0 < low < high" if self.log else "low < high"
            raise ValueError(f"{rule} must hold, but got low {self.low:g}, high {self.high:g}")
        return self


class SearchSection(Config):
    """What a sweep file says of its search."""

    algorithm: Literal["stratified", "random"] = option("stratified", "one try in each equal part, or anywhere")
    tries: int = option(4, "points of every combination of the grid", ge=1)
    seed: int = option(0, "of the draws")
    fields: dict[str, Any] = option({}, "options with ranges")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.fields:
            raise ValueError(
                "search.fields: is empty: give options with ranges, like learning-rate: {low: 1e-4, high: 1e-2}"
            )
        return self


@dataclass(frozen=True)
class SearchPlan:
    """The search of a sweep."""

    section: SearchSection
    # Varied thing to its range; where the range depends on another varied thing, its value to range
    ranges: Mapping[str, Mapping[str, Range]]
    by: Mapping[str, str]  # Varied thing to the one that its range depends on


def read_search(given: Any, varied: Varied, problems: list[str]) -> SearchPlan | None:
    """Read the section; what is wrong goes to ``problems``."""
    section = None if given is None else build_section(SearchSection, given, "search", problems)
    if section is None:
        return None
    ranges: dict[str, Mapping[str, Range]] = {}
    by: dict[str, str] = {}
    for name, value in section.fields.items():
        path = f"search.fields.{name}"
        key = varied(name, path)
        if key is None:
            continue
        spans = value if isinstance(value, Mapping) and "by" in value else {"": value}
        other = varied(str(spans["by"]), f"{path}.by") if "by" in spans else None
        by |= {key: other} if other else {}
        found = {}
        for one, span in spans.items():
            if one != "by":
                given = {"choices": span} if isinstance(span, list) else span
                read = build_section(Range, given, f"{path}.{one}".rstrip("."), problems)
                found[str(one)] = read or Range(choices=(0,))
        ranges[key] = found
    return SearchPlan(section, ranges, by)


def value_at(span: Range, place: float) -> Any:
    """The value at a place from 0 to 1 of a range; floats have four significant figures."""
    if span.choices:
        return span.choices[min(int(place * len(span.choices)), len(span.choices) - 1)]
    if span.log:
        value = math.exp(math.log(span.low) + place * (math.log(span.high) - math.log(span.low)))
    else:
        value = span.low + place * (span.high - span.low)
    return round(value) if span.whole else float(f"{value:.4g}")


def draw(plan: SearchPlan, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tries of one combination of the grid: as many, at the same places, for every combination.

    ``stratified`` puts one try into each of ``tries`` equal parts of every range (a Latin hypercube; McKay, Beckman and
    Conover 1979), ``random`` draws them independently.
    """
    rng, tries = random.Random(plan.section.seed), plan.section.tries
    columns: dict[str, list[float]] = {}
    for key in plan.ranges:
        places = [rng.random() for _ in range(tries)]
        if plan.section.algorithm == "stratified":
            parts = rng.sample(range(tries), tries)
            places = [(part + place) / tries for part, place in zip(parts, places, strict=True)]
        columns[key] = places
    ranges = {key: spans[str(values[plan.by[key]]) if key in plan.by else ""] for key, spans in plan.ranges.items()}
    return [{key: value_at(ranges[key], places[number]) for key, places in columns.items()}
            for number in range(tries)]  # fmt: skip
