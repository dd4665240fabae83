"""How far raters agree beyond chance, and strengths that explain who was preferred to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
EXTRA_TIES = 1.0
_ROUNDS, _CLOSE = 10_000, 1e-10


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for categories (Content Analysis, 1980): 1 is full agreement, 0 that of chance.

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


def is_connected(met: Matrix) -> bool:
    """Whether every model can be compared with every other through those they met.

    Args:
        met: ``[models, models]`` how often two met.
    """
    reached, number = {0}, len(met)
    for _ in range(number):
        reached |= {other for model in reached for other in range(number) if met[model, other] > 0}
    return len(reached) == number


def log_strengths(wins: Matrix, extra: Matrix) -> Matrix:
    """Bradley-Terry log-strengths (1952) with mean 0: model i is preferred to j with chance 1 / (1 + exp(s_j - s_i)).

    The likeliest ones, found by the MM algorithm (Hunter 2004, Annals of Statistics 32). A tie is half a win for each.

    Args:
        wins: ``[..., models, models]`` how often the row's model was preferred to the column's.
        extra: ``[models, models]`` ties that are added, so that who never lost has a finite strength (a prior, as in
            Caron and Doucet 2012, arXiv 1011.1761); 0 where two never met.

    Returns:
        ``[..., models]``.
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
