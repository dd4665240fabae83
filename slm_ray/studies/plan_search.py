"""The ``search`` of a sweep file: which options are drawn from which ranges, and how often."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from slm_ray.config.errors import nearest
from slm_ray.studies.stages import normal_name
from slm_ray.studies.sweep_file import Range, SearchPlan, Values

ALGORITHMS = ("stratified", "random")
_KEYS = ("algorithm", "tries", "seed", "fields")
_RANGE_KEYS = ("low", "high", "log", "whole", "choices")
Varied = Callable[[str, str], str | None]


def read_search(given: Any, varied: Varied, problems: list[str]) -> SearchPlan | None:
    """Read the section; what is wrong goes to ``problems``.

    ``given``: The section; None where there is none.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        problems.append(f"search: must hold tries and fields, got {given!r}")
        return None
    section = {normal_name(str(key)): value for key, value in given.items()}
    problems += [f"search.{key}: no such entry; {nearest(key, _KEYS)}" for key in section if key not in _KEYS]
    algorithm, tries = section.get("algorithm", "stratified"), section.get("tries", 4)
    if algorithm not in ALGORITHMS:
        problems.append(f"search.algorithm: '{algorithm}' is not one of them: {nearest(str(algorithm), ALGORITHMS)}")
    if not isinstance(tries, int) or tries < 1:
        problems.append(f"search.tries: must be a whole number of at least 1, got {tries!r}")
        return None
    ranges: dict[str, Mapping[str, Range]] = {}
    by: dict[str, str] = {}
    for name, value in (section.get("fields") or {}).items():
        path = f"search.fields.{name}"
        key = varied(str(name), path)
        if key is not None:
            ranges[key], other = _read_field(value, path, varied, problems)
            by |= {key: other} if other else {}
    if not section.get("fields"):
        problems.append(
            "search.fields: is empty: give options with ranges, like learning-rate: {low: 1e-4, high: 1e-2}"
        )
    return SearchPlan(str(algorithm), tries, int(section.get("seed", 0)), ranges, by)


def _read_field(
    value: Any, path: str, varied: Varied, problems: list[str]
) -> tuple[dict[str, Range], str | None]:  # fmt: skip
    """The range of one option, or one for each value of another (``by``)."""
    if isinstance(value, Mapping) and "by" in value:
        other = varied(str(value["by"]), f"{path}.by")
        found = {str(key): _read_range(one, f"{path}.{key}", problems) for key, one in value.items() if key != "by"}
        return found, other
    return {"": _read_range(value, path, problems)}, None


def _number(value: Any) -> float | None:
    try:  # YAML 1.1 reads 1e-4 as text
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _read_range(value: Any, path: str, problems: list[str]) -> Range:
    nothing = Range()
    if isinstance(value, list) and value:
        return Range(choices=tuple(value))
    if not isinstance(value, Mapping):
        problems.append(f"{path}: must be a list of choices or {{low: …, high: …, log: true}}, got {value!r}")
        return nothing
    unknown = [key for key in value if key not in _RANGE_KEYS]
    if unknown:
        problems.append(f"{path}.{unknown[0]}: no such entry; {nearest(str(unknown[0]), _RANGE_KEYS)}")
        return nothing
    if value.get("choices"):
        return Range(choices=tuple(value["choices"]))
    low, high, log = _number(value.get("low")), _number(value.get("high")), bool(value.get("log", False))
    if low is None or high is None or low >= high or (log and low <= 0):
        rule = "0 < low < high" if log else "low < high"
        problems.append(f"{path}: {rule} must hold, but got low {value.get('low')!r}, high {value.get('high')!r}")
        return nothing
    return Range(low, high, log, bool(value.get("whole", False)))


def value_at(span: Range, place: float) -> Any:
    """The value at a place from 0 to 1 of a range; floats have four significant figures."""
    if span.choices:
        return span.choices[min(int(place * len(span.choices)), len(span.choices) - 1)]
    if span.log:
        value = math.exp(math.log(span.low) + place * (math.log(span.high) - math.log(span.low)))
    else:
        value = span.low + place * (span.high - span.low)
    return round(value) if span.whole else float(f"{value:.4g}")


def draw(plan: SearchPlan, values: Values) -> list[Values]:
    """The tries of one combination of the grid: as many, at the same places, for every combination.

    ``stratified`` puts one try into each of ``tries`` equal parts of every range (a Latin hypercube; McKay, Beckman and
    Conover 1979), ``random`` draws them independently.
    """
    rng = random.Random(plan.seed)
    columns: dict[str, list[float]] = {}
    for key in plan.ranges:
        places = [rng.random() for _ in range(plan.tries)]
        if plan.algorithm == "stratified":
            parts = rng.sample(range(plan.tries), plan.tries)
            places = [(part + place) / plan.tries for part, place in zip(parts, places, strict=True)]
        columns[key] = places
    return [{key: value_at(range_of(plan, key, values), places[number]) for key, places in columns.items()}
            for number in range(plan.tries)]  # fmt: skip


def range_of(plan: SearchPlan, key: str, values: Values) -> Range:
    """The range of an option, which may depend on another's value.

    Raises:
        KeyError: There is none for that value.
    """
    spans = plan.ranges[key]
    return spans[str(values[plan.by[key]])] if key in plan.by else spans[""]
