"""Score once, solve any budget: an integer program over the widths and skips of every layer.

Each layer keeps the best ``h`` key-value heads and the best ``n`` blocks of neurons of its order, each number chosen on
its own and priced by what that cut alone does to the teacher; a layer of which nothing is kept is priced by what
leaving it out does. The sum of prices is minimised within the budget, exactly, by HiGHS (scipy.optimize.milp).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from slm_ray.config.errors import UserError
from slm_ray.search.axes import FloatArray, IntArray
from slm_ray.search.genome import Genome
from slm_ray.search.sizing import Choice

_SECONDS = 20.0
_GAP = 1e-6


@dataclass(frozen=True, eq=False)
class CutPrices:
    """What cuts cost in quality, in nats per token.

    Attributes:
        heads: ``[layers, blocks + 1]``, by how many blocks of key-value heads are kept.
        neurons: ``[layers, blocks + 1]``, by how many blocks of neurons are kept.
        layers: ``[layers]``, of leaving the whole layer out.
    """

    heads: FloatArray
    neurons: FloatArray
    layers: FloatArray


def check_space(genome: Genome) -> None:
    """Make sure that a space's choices are those of the integer program.

    Raises:
        UserError: They are not.
    """
    axes = genome.space.axes
    wrong = [name for name in ("hidden", "queries") if name in axes]
    wrong += [name for name in ("heads", "neurons") if name not in axes or axes[name].per != "layer"]
    if "layers" in axes and (axes["layers"].select != "subset" or axes["layers"].step != 1):
        wrong.append("layers")
    if wrong:
        raise UserError(
            f"the integer program chooses heads and neurons layer by layer and any subset of layers, and space "
            f"'{genome.space.name}' differs in {', '.join(wrong)}: use --space fine, or --algorithm nsga2"
        )


class IntegerProgram:
    """The integer program of one genome, cost quantity and set of prices."""

    def __init__(self, genome: Genome, prices: CutPrices, quantity: str, sequence_length: int) -> None:
        """Set up.

        Raises:
            UserError: The space has other choices.
        """
        check_space(genome)
        self.genome, self.prices = genome, prices
        self.quantity, self.sequence_length = quantity, sequence_length
        self._axes = genome.bound_axes()
        self._num_layers = len(prices.layers)
        self._costs = self._option_costs()

    def _option_costs(self) -> tuple[int, IntArray, IntArray]:
        """The cost of a model without layers, and of every number of head blocks and of neuron blocks."""
        rates = self.genome.cost_rates(self.quantity, self.sequence_length)
        heads, neurons, queries = self._axes["heads"], self._axes["neurons"], self._axes["queries"]
        kept = np.concatenate([[0], np.cumsum(heads.sizes)])
        widths = np.concatenate([[0], np.cumsum(neurons.sizes)])
        of_heads = kept * rates.heads[int(queries.sizes.sum())] + rates.attention * (kept > 0)
        return rates.base, of_heads, widths * rates.neuron + rates.mlp * (widths > 0)

    def solve(self, low: int, high: int) -> tuple[IntArray, float] | None:
        """The genes of least summed price with a cost in ``low..high``, and that price; None where there are none.

        Args:
            low: The least cost.
            high: The greatest.
        """
        count = self._num_layers
        base, head_costs, neuron_costs = self._costs
        many_heads, many_neurons = len(head_costs), len(neuron_costs)
        width = many_heads + many_neurons + 1  # per layer: one-hot heads, one-hot neurons, and "left out"
        total = count * width
        objective, costs, upper = np.zeros(total), np.zeros(total), np.ones(total)
        rows = lil_matrix((2 * count + 3 * count + 3, total))
        lows, highs = np.full(rows.shape[0], -np.inf), np.full(rows.shape[0], np.inf)
        least = {name: self._axes[name].least for name in ("heads", "neurons")}
        for layer in range(count):
            at = layer * width
            heads = slice(at, at + many_heads)
            neurons = slice(at + many_heads, at + many_heads + many_neurons)
            out = at + width - 1
            objective[heads], objective[neurons] = self.prices.heads[layer], self.prices.neurons[layer]
            objective[out] = self.prices.layers[layer] - self.prices.heads[layer, 0] - self.prices.neurons[layer, 0]
            costs[heads], costs[neurons] = head_costs, neuron_costs
            upper[heads][1 : least["heads"]] = 0
            upper[neurons][1 : least["neurons"]] = 0
            for name, part in (("heads", heads), ("neurons", neurons)):  # no more than the teacher has left
                upper[part][1 + int(self._axes[name].allowed[layer].sum()) :] = 0
            for number, part in enumerate((heads, neurons)):
                rows[2 * layer + number, part] = 1
                lows[2 * layer + number] = highs[2 * layer + number] = 1
            first = 2 * count + 3 * layer
            no_heads, no_neurons = heads.start, neurons.start
            for number, (name, one) in enumerate((("heads", no_heads), ("neurons", no_neurons))):
                rows[first + number, out], rows[first + number, one] = 1, -1  # left out only where neither is kept
                highs[first + number] = 0
                if least[name]:  # and where the space has a least, none are kept only in a layer that is left out
                    lows[first + number] = 0
            rows[first + 2, no_heads] = rows[first + 2, no_neurons] = 1  # and always there
            rows[first + 2, out] = -1
            highs[first + 2] = 1
        scale = max(1.0, float(high))
        rows[-3, :] = costs / scale
        lows[-3], highs[-3] = (low - base) / scale, (high - base) / scale
        rows[-2, [layer * width for layer in range(count)]] = 1  # some layer keeps attention
        highs[-2] = count - 1
        rows[-1, [layer * width + width - 1 for layer in range(count)]] = 1
        highs[-1] = count - (self._axes["layers"].least if self._axes["layers"].free else 0)
        found = milp(
            objective, integrality=np.ones(total), bounds=Bounds(0, upper),
            constraints=LinearConstraint(rows.tocsr(), lows, highs),
            options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
        )  # fmt: skip
        if found.x is None:
            return None
        chosen = np.round(found.x).astype(int).reshape(count, width)
        kept_heads = chosen[:, :many_heads].argmax(1)
        kept_neurons = chosen[:, many_heads : many_heads + many_neurons].argmax(1)
        return self._genes(kept_heads, kept_neurons), float(found.fun)

    def _genes(self, heads: IntArray, neurons: IntArray) -> IntArray:
        """The genes that keep so many of the best blocks of each layer."""
        axes = self._axes
        masks = {
            name: np.arange(axes[name].blocks)[None, :] < kept[:, None]
            for name, kept in (("heads", heads), ("neurons", neurons))
        }
        whole = self.genome.whole_choice()
        if axes["layers"].free:  # what is left out is switched off, and would come back whole
            out = (heads == 0) & (neurons == 0)
            whole.layers[0] = ~out[axes["layers"].order[0]]
            for mask in masks.values():
                mask[out] = True
        return self.genome.contract(Choice(whole.hidden, whole.layers, masks["heads"], whole.queries, masks["neurons"]))
