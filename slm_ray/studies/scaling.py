"""Scaling laws: L(N, D) = E + A / N^alpha + B / D^beta, fitted as in Hoffmann et al. (arXiv 2203.15556, approach 3).

The Huber loss of log L, summed over the runs, is made small by L-BFGS from a grid of beginnings. Besiroglu et al.
(arXiv 2404.10102) found that the published fit had ended early, because the loss was averaged and so fell below the
optimiser's tolerance, and that its intervals were far too narrow: so here it is summed, the tolerance is tight, and
intervals come from fitting resampled runs anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from slm_ray.config.errors import UserError

Array = npt.NDArray[np.float64]

DELTA = 1e-3  # of the Huber loss, as in the paper
LEAST_RUNS, LEAST_SIZES, LEAST_BUDGETS = 6, 3, 3  # five coefficients, and what tells N from D
LEAST_CURVE = 4  # three coefficients
FLOPS_PER_PARAM_TOKEN = 6.0  # forward 2, backward 4 (Kaplan et al., arXiv 2001.08361)
MIDDLE = (0.025, 0.975)
RESAMPLES = 200  # fits of resampled runs, for intervals
_STARTS = 24  # of the grid's beginnings, those of least loss are followed
_LEAST_EXPONENT = 1e-3
_FOLLOWED = 3  # of those, to the end
_FEW_STEPS, _MOST_STEPS = 200, 4000
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class ScalingLaw:
    """The coefficients of L(N, D), in nats per token; those of L(D) have no weight of the size."""

    e: float  # The loss that no size and no data go below
    a: float  # Weight of the size
    b: float  # Weight of the data
    alpha: float  # Exponent of the size
    beta: float  # Exponent of the data

    def loss(self, params: npt.ArrayLike, tokens: npt.ArrayLike) -> Array:
        """The loss of models of so many parameters after so many tokens."""
        n, d = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
        return np.asarray(self.e + self.a / n**self.alpha + self.b / d**self.beta)

    def best_split(self, flops: float) -> tuple[float, float]:
        """The size and tokens of least loss for a training's FLOPs, in closed form (arXiv 2203.15556, equation 4)."""
        total, product = self.alpha + self.beta, flops / FLOPS_PER_PARAM_TOKEN
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / total)
        params = ratio * product ** (self.beta / total)
        return float(params), float(product / params)


@dataclass(frozen=True)
class Fit:
    """A fitted law and how sure it is."""

    law: ScalingLaw  # The best coefficients
    resampled: tuple[ScalingLaw, ...]  # Laws of the resampled runs
    residual: float  # Root mean square of log L minus its prediction
    runs: int  # Number of runs
    reach: tuple[float, float]  # How much the terms of size and of data move log L between these runs

    def interval(self, name: str) -> tuple[float, float]:
        """The middle 95% of a coefficient over the resampled fits."""
        return middle([getattr(law, name) for law in self.resampled])

    def undetermined(self) -> list[str]:
        """The exponents that the runs say too little of for a split of a compute.

        Where a term moves the loss less than the fit errs, its exponent has nothing to be fitted to, and resampled fits
        that begin there stay there: the interval is narrow, and says nothing.
        """
        found = []
        for name, reach in zip(("alpha", "beta"), self.reach, strict=True):
            low, high = self.interval(name)
            if low < 2 * _LEAST_EXPONENT or high > 10 * low or reach < self.residual:
                found.append(name)
        return found

    def band(self, params: npt.ArrayLike, tokens: npt.ArrayLike) -> tuple[Array, Array]:
        """The middle 95% of the predicted losses, point by point."""
        low, high = np.quantile(np.stack([law.loss(params, tokens) for law in self.resampled]), MIDDLE, axis=0)
        return low, high

    def split_interval(self, flops: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """The middle 95% of the best size and of the best tokens for a compute."""
        sizes, tokens = zip(*(law.best_split(flops) for law in self.resampled), strict=True)
        return middle(sizes), middle(tokens)


def middle(values: Sequence[float]) -> tuple[float, float]:
    """The quantiles that hold the middle 95% of values."""
    low, high = np.quantile(np.asarray(values), MIDDLE)
    return float(low), float(high)


def _checked(columns: dict[str, Sequence[float]]) -> list[Array]:
    arrays = [np.asarray(values, dtype=float) for values in columns.values()]
    for name, values in zip(columns, arrays, strict=True):
        if not np.all(np.isfinite(values)) or np.any(values <= 0):
            raise UserError(f"a scaling law needs {name} that are numbers above 0, got {values.tolist()}")
    return arrays


def _objective(theta: Array, terms: list[Array], log_loss: Array) -> tuple[float, Array]:
    """The summed Huber loss and its gradient."""
    parts = [theta[2 * i] - theta[2 * i + 1] * term for i, term in enumerate(terms)]
    stacked = np.stack([*parts, np.full_like(log_loss, theta[-1])])
    top = stacked.max(axis=0)
    weights = np.exp(stacked - top)
    total = weights.sum(axis=0)
    error = top + np.log(total) - log_loss
    shares = weights / total
    slope = np.clip(error, -DELTA, DELTA)
    size = np.abs(error)
    value = np.where(size <= DELTA, 0.5 * error**2, DELTA * (size - 0.5 * DELTA)).sum()
    gradient = np.empty_like(theta)
    for i, term in enumerate(terms):
        gradient[2 * i] = (slope * shares[i]).sum()
        gradient[2 * i + 1] = -(slope * shares[i] * term).sum()
    gradient[-1] = (slope * shares[-1]).sum()
    return float(value), gradient


def _refine(start: Array, terms: list[Array], log_loss: Array, steps: int) -> tuple[float, Array]:
    # Scaled up, so that the optimiser's own tolerances on values near delta^2 do not end it early.
    scale = 1 / DELTA**2

    def scaled(theta: Array) -> tuple[float, Array]:
        value, gradient = _objective(theta, terms, log_loss)
        return scale * value, scale * gradient

    # Exponents and weights are positive by the law's own form; E below the least loss.
    bounds = [bound for _ in terms for bound in ((None, None), (_LEAST_EXPONENT, 5.0))] + [
        (-10.0, float(log_loss.min()))
    ]
    clipped = np.clip(start, [-np.inf if low is None else low for low, _ in bounds],
                      [np.inf if high is None else high for _, high in bounds])  # fmt: skip
    found = minimize(
        scaled, clipped, jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": steps, "ftol": _TOLERANCE, "gtol": 1e-9},
    )  # fmt: skip
    return float(found.fun), np.asarray(found.x)


def _starts(terms: list[Array], log_loss: Array) -> list[Array]:
    """The paper's grid of beginnings, the best of them first."""
    exponents, weights, floors = np.arange(0.0, 2.1, 0.5), np.arange(0.0, 26.0, 5.0), (-1.0, -0.5, 0.0, 0.5, 1.0)
    grid = [np.array([x for pair in pairs for x in pair] + [floor])
            for pairs in itertools.product(itertools.product(weights, exponents), repeat=len(terms))
            for floor in floors]  # fmt: skip
    values = [_objective(theta, terms, log_loss)[0] for theta in grid]
    order = np.argsort(values, kind="stable")
    return [grid[place] for place in order[:_STARTS]]


def _best(starts: Sequence[Array], terms: list[Array], log_loss: Array) -> Array:
    """The best fit: all beginnings are followed a little, the best of them to the end."""
    # Products of a few numbers: threads of BLAS would only wait for each other.
    with threadpool_limits(1):
        found = sorted((_refine(start, terms, log_loss, _FEW_STEPS) for start in starts), key=lambda one: one[0])
        if len(starts) > _FOLLOWED:
            found = [_refine(theta, terms, log_loss, _MOST_STEPS) for _, theta in found[:_FOLLOWED]]
    return min(found, key=lambda one: one[0])[1]


def _resampled(best: Array, terms: list[Array], log_loss: Array, count: int, seed: int) -> list[Array]:
    """Fits of runs drawn with replacement, beginning at the best fit and beside it."""
    rng = np.random.default_rng(seed)
    found: list[Array] = []
    while len(found) < count:
        rows = rng.integers(0, len(log_loss), len(log_loss))
        if any(len(np.unique(term[rows])) < 2 for term in terms):
            continue  # one size, or one number of tokens, says nothing of its exponent
        starts = [best, best * 1.1]
        found.append(_best(starts, [term[rows] for term in terms], log_loss[rows]))
    return found


def fit_law(
    params: Sequence[float], tokens: Sequence[float], losses: Sequence[float], *, resamples: int = RESAMPLES,
    seed: int = 0,
) -> Fit:  # fmt: skip
    """Fit L(N, D) to finished runs and their held-out losses in nats per token."""
    n, d, loss = _checked({"sizes": params, "tokens": tokens, "losses": losses})
    sizes, budgets = len(np.unique(n)), len(np.unique(d))
    if len(n) < LEAST_RUNS or sizes < LEAST_SIZES or budgets < LEAST_BUDGETS:
        raise UserError(
            f"L(N, D) has five coefficients: it needs at least {LEAST_RUNS} finished runs of {LEAST_SIZES} sizes and "
            f"{LEAST_BUDGETS} token budgets, got {len(n)} runs of {sizes} sizes and {budgets} budgets"
        )
    terms, log_loss = [np.log(n), np.log(d)], np.log(loss)
    best = _best(_starts(terms, log_loss), terms, log_loss)
    law = _law(best)
    residual = float(np.sqrt(np.mean((np.log(law.loss(n, d)) - log_loss) ** 2)))
    resampled = tuple(map(_law, _resampled(best, terms, log_loss, resamples, seed)))
    moved = (law.a / n**law.alpha / loss, law.b / d**law.beta / loss)
    return Fit(law, resampled, residual, len(n), (float(np.ptp(moved[0])), float(np.ptp(moved[1]))))


def _law(theta: Array) -> ScalingLaw:
    """The law of a fit's parameters: weight and exponent of each term, those of the size first, and E."""
    weight, exponent = (0.0, 1.0) if len(theta) == 3 else (float(np.exp(theta[0])), float(theta[1]))
    with np.errstate(over="ignore"):
        return ScalingLaw(float(np.exp(theta[-1])), weight, float(np.exp(theta[-3])), exponent, float(theta[-2]))


def fit_curve(
    tokens: Sequence[float], losses: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[ScalingLaw, tuple[ScalingLaw, ...]]:
    """L(D) = E + B / D^beta of one size, and that of resampled runs."""
    d, loss = _checked({"tokens": tokens, "losses": losses})
    budgets = len(np.unique(d))
    if budgets < LEAST_CURVE:
        raise UserError(
            f"L(D) has three coefficients: it needs at least {LEAST_CURVE} different token budgets, got {budgets}"
        )
    terms, log_loss = [np.log(d)], np.log(loss)
    best = _best(_starts(terms, log_loss), terms, log_loss)
    return _law(best), tuple(map(_law, _resampled(best, terms, log_loss, resamples, seed)))


def describe_fit(fit: Fit, flops: Sequence[float] = ()) -> list[str]:
    """The fit in words, with the best split of each compute."""
    from slm_ray.config.units import format_count

    law = fit.law
    lines = [
        f"L(N, D) = {law.e:.4g} + {law.a:.4g} / N^{law.alpha:.4g} + {law.b:.4g} / D^{law.beta:.4g}, nats per token, "
        f"from {fit.runs} runs (root mean square of log L: {fit.residual:.2g})"
    ]
    for name, title in (("e", "E"), ("a", "A"), ("b", "B"), ("alpha", "alpha"), ("beta", "beta")):
        low, high = fit.interval(name)
        lines.append(f"  {title:6} {getattr(law, name):.4g}, 95% {low:.4g} to {high:.4g}")
    if unknown := fit.undetermined():
        lines.append(
            f"These runs do not determine {' and '.join(unknown)} (its interval reaches 0 or spans a factor of 10, or "
            "its term moves the loss less than the fit errs): no split of a compute follows from them; more sizes, "
            "more tokens or a wider range are needed"
        )
        return lines
    for compute in flops:
        params, tokens = law.best_split(compute)
        size, data = fit.split_interval(compute)
        lines.append(
            f"{compute:.3g} FLOPs are best spent on {format_count(params)} parameters "
            f"({format_count(size[0])} to {format_count(size[1])}) and {format_count(tokens)} tokens "
            f"({format_count(data[0])} to {format_count(data[1])}), for a loss of {float(law.loss(params, tokens)):.4g}"
        )
    return lines


def to_json(fit: Fit) -> dict[str, Any]:
    """The fit as a file holds it."""
    law = fit.law
    return {
        "form": "E + A / N^alpha + B / D^beta", "unit": "nats per token", "runs": fit.runs, "residual": fit.residual,
        **{name: {"value": getattr(law, name), "low": fit.interval(name)[0], "high": fit.interval(name)[1]}
           for name in ("e", "a", "b", "alpha", "beta")},
        "resamples": len(fit.resampled),
    }  # fmt: skip
