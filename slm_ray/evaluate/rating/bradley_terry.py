"""Strengths of models that explain who was preferred to whom (Bradley and Terry 1952)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
EXTRA_TIES = 1.0
_ROUNDS, _CLOSE = 10_000, 1e-10


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
    """Log-strengths with mean 0: model i is preferred to j with chance 1 / (1 + exp(s_j - s_i)).

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
