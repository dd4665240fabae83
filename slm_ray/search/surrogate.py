"""``--screen``: more offspring than are measured, picked by a ridge regression over the candidates measured so far.

The regression depends on the seed and on the results told alone, as the algorithms do, so a resumed run picks the same
offspring. It is fitted anew before every generation; a few dozen rows take a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slm_ray.records.budget import QUANTITIES
from slm_ray.search.axes import IntArray
from slm_ray.search.stack import GenomeStack
from slm_ray.search.static import importance_lost

FEWEST_TOLD = 12  # candidates before anything is predicted
UNSCREENED_SHARE = 0.25  # of the picks are drawn whatever their prediction
PENALTIES = 10.0 ** np.linspace(-5, 2, 29)  # of the largest squared singular value
_FAILED = 1e8  # told of failed candidates, which say nothing about how quality follows from sizes

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear model of standardised features."""

    mean: Array  # ``[features]``
    scale: Array  # ``[features]``; 1 where a feature never changes
    weights: Array  # ``[features]``, of standardised features
    intercept: float  # The mean of the targets
    penalty: float  # The one chosen, on the squared norm of the weights

    def predict(self, features: Array) -> Array:
        """``[rows]`` predictions for ``[rows, features]``."""
        return np.asarray((features - self.mean) / self.scale @ self.weights + self.intercept)


def fit_ridge(features: Array, targets: Array) -> Ridge:
    """Ridge regression (Hoerl and Kennard 1970), its penalty chosen by generalised cross-validation.

    The penalty is that of ``PENALTIES``, times the largest squared singular value, with the least
    ``rows * RSS / (rows - trace(hat)) ** 2`` (Golub, Heath and Wahba 1979), the intercept being part of the hat matrix.

    ``features``: ``[rows, features]``, finite. ``targets``: ``[rows]``, finite.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    intercept, rows = float(targets.mean()), len(targets)
    left, singular, right = np.linalg.svd((features - mean) / scale, full_matrices=False)
    along, squares = left.T @ (targets - intercept), singular**2
    largest = float(squares.max(initial=0.0))
    if largest <= 1e-12:
        return Ridge(mean, scale, np.zeros(features.shape[1]), intercept, 0.0)
    outside = max(0.0, float(np.sum((targets - intercept) ** 2) - np.sum(along**2)))
    best, chosen = np.inf, PENALTIES[-1]
    for share in PENALTIES:
        kept = squares / (squares + share * largest)
        residual = outside + float(np.sum(((1 - kept) * along) ** 2))
        score = rows * residual / (rows - 1 - float(kept.sum())) ** 2
        if score < best:
            best, chosen = score, share
    penalty = float(chosen * largest)
    return Ridge(mean, scale, right.T @ (singular / (squares + penalty) * along), intercept, penalty)


class Screen:
    """Picks the offspring from which the regression expects the most.

    Attributes:
        factor: Offspring per candidate that is measured
        predictions: The first objective, as algorithms are told it, that was expected of each candidate when it was
            picked, by its genes as text
    """

    def __init__(self, stack: GenomeStack, objectives: Sequence[str], factor: int, seed: int) -> None:
        self.stack, self.factor = stack, factor
        self.predictions: dict[str, float] = {}
        # A cost that has to be measured (latency) is stood for by the budget's.
        second = [name if name in QUANTITIES else stack.budget.quantity for name in objectives[1:]]
        self._cost_name = second[0] if second else None
        self._rng = np.random.default_rng([seed, 0x5C])
        self._told: dict[str, tuple[Array, float, float]] = {}  # by genes: features, value, cost
        self._features: dict[str, Array] = {}
        # Rankings between the two that were learned are sums of these: they would say nothing more.
        guides = {id(genome.guide): genome.guide for genome in stack.genomes[:2]}
        self._guides = [guide for guide in guides.values() if guide.comparable]

    def learn(self, candidates: Sequence[IntArray], objectives: Array) -> None:
        """Take in results.

        ``objectives``: ``[candidates, objectives]`` as an algorithm is told them.
        """
        for genes, values in zip(candidates, objectives, strict=True):
            if values[0] < _FAILED:
                told = self._features_of(genes), float(values[0]), self._cost(genes)
                self._told[self.stack.to_text(genes)] = told

    def pick(self, offspring: Sequence[IntArray], count: int) -> list[int]:
        """Which offspring to measure.

        One after the other, the one that is expected to be furthest below the best known at its cost or less, with
        expectations of those picked before it counted among the known; and some at random.
        """
        texts = [self.stack.to_text(genes) for genes in offspring]
        fresh = [at for at, text in enumerate(texts) if text not in self._told and texts.index(text) == at]
        others = [at for at in range(len(offspring)) if at not in set(fresh)]
        if len(self._told) < FEWEST_TOLD:
            return sorted([*fresh, *others][:count])
        expected = self._predict([offspring[at] for at in fresh])
        costs = np.array([self._cost(offspring[at]) for at in fresh])
        unscreened = min(len(fresh), round(UNSCREENED_SHARE * count))
        picked = self._greedily(expected, costs, min(count, len(fresh)) - unscreened)
        left = [row for row in range(len(fresh)) if row not in set(picked)]
        if left and unscreened:
            picked += [left[int(row)] for row in self._rng.permutation(len(left))[:unscreened]]
        for row in picked:
            self.predictions.setdefault(texts[fresh[row]], float(expected[row]))
        return sorted([*(fresh[row] for row in picked), *others][:count])

    def _cost(self, genes: IntArray) -> float:
        if self._cost_name is None:
            return 0.0
        cost = self.stack.cost(genes, self._cost_name)
        return self.stack.step_of(cost) if self._cost_name == self.stack.budget.quantity else float(cost)

    def _features_of(self, genes: IntArray) -> Array:
        """``[features]``: shares kept of every layer, sizes, unit scores pruned; their squares; layers skipped."""
        text = self.stack.to_text(genes)
        if text in self._features:
            return self._features[text]
        spec, teacher = self.stack.decode(genes), self.stack.teacher
        count, shape = teacher.num_hidden_layers, teacher.layers[0]
        heads, neurons, skipped = np.zeros(count), np.zeros(count), np.ones(count)
        for layer in spec.layers:
            heads[layer.source] = len(layer.flat_query_heads) / shape.num_attention_heads
            neurons[layer.source] = len(layer.neurons) / shape.intermediate_size
            skipped[layer.source] = 0.0
        sizes = [len(spec.hidden) / teacher.hidden_size, len(spec.layers) / count]
        lost = [importance_lost(spec, guide) for guide in self._guides]
        once = np.concatenate([heads, neurons, sizes, lost])
        self._features[text] = np.concatenate([once, once**2, skipped, [float(genes[0])]])
        return self._features[text]

    def _predict(self, candidates: Sequence[IntArray]) -> Array:
        if not candidates:
            return np.zeros(0)
        told = list(self._told.values())
        targets = np.array([value for _, value, _ in told])
        # Ruined candidates lie far out and would bend the fit where good ones are: they count as no worse than the
        # outer fence of Tukey's box plot.
        low, high = np.quantile(targets, [0.25, 0.75])
        model = fit_ridge(np.array([features for features, _, _ in told]), np.minimum(targets, high + 3 * (high - low)))
        return model.predict(np.array([self._features_of(genes) for genes in candidates]))

    def _greedily(self, expected: Array, costs: Array, count: int) -> list[int]:
        """Rows of the most expected gain, each in view of those before it."""
        values = np.array([value for _, value, _ in self._told.values()])
        at = np.array([cost for _, _, cost in self._told.values()])
        best = np.array([values[at <= cost].min(initial=values.max()) for cost in costs])
        picked: list[int] = []
        for _ in range(max(0, count)):
            gains = best - expected
            gains[picked] = -np.inf
            row = int(np.argmax(gains))
            picked.append(row)
            best = np.where(costs >= costs[row], np.minimum(best, expected[row]), best)
        return picked
