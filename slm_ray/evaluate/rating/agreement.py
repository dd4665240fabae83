"""How far raters agree beyond chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for categories (Content Analysis, 1980): 1 is full agreement, 0 that of chance.

    Args:
        units: For each thing that was rated, its ratings, however many; those with one rating tell nothing.

    Returns:
        Alpha; None where nothing was rated twice, or only one category was ever used.
    """
    counts = [Counter(unit) for unit in units if len(unit) > 1]
    whole = sum(counts, Counter[str]())
    number = whole.total()
    expected = number**2 - sum(count**2 for count in whole.values())
    if not number or not expected:
        return None
    observed = sum((one.total() ** 2 - sum(c**2 for c in one.values())) / (one.total() - 1) for one in counts)
    return 1 - (number - 1) * observed / expected


def cohen_kappa(first: Mapping[str, str], second: Mapping[str, str]) -> float | None:
    """Cohen's kappa (1960) of two raters.

    Args:
        first: Thing to category.
        second: The other rater's; only what both rated counts.

    Returns:
        Kappa; None where they rated nothing in common, or both used one and the same category only.
    """
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    agreed = sum(first[thing] == second[thing] for thing in both) / len(both)
    mine, other = Counter(first[thing] for thing in both), Counter(second[thing] for thing in both)
    chance = sum(mine[category] * other[category] for category in mine) / len(both) ** 2
    return (agreed - chance) / (1 - chance) if chance < 1 else None
