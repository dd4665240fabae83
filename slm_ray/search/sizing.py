"""Sizes and costs of a choice, without building the sub-network.

A cost is affine in the units of each layer, so a handful of rates per width, measured with the exact cost functions on
tiny architectures, gives the cost of any choice in a few vector operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.budget import measure_cost
from slm_ray.search.axes import BoolArray, BoundAxis, IntArray


@dataclass(eq=False)
class Choice:
    """The masks of all axes: what a genome says, one boolean per block (see :class:`BoundAxis`)."""

    hidden: BoolArray
    layers: BoolArray
    heads: BoolArray
    queries: BoolArray
    neurons: BoolArray

    def copy(self) -> Choice:
        """A choice that may be changed without changing this one."""
        masks = (self.hidden, self.layers, self.heads, self.queries, self.neurons)
        return Choice(*(mask.copy() for mask in masks))

    def mask(self, name: str) -> BoolArray:
        """The mask ``[rows, blocks]`` of an axis."""
        mask: BoolArray = getattr(self, name)
        return mask


@dataclass(frozen=True, eq=False)
class Rates:
    """What units cost at one hidden size, in a budget quantity.

    Attributes:
        base: The model without layers.
        heads: ``[queries + 1]``, one key-value head with this many query heads (entry 0 is unused).
        attention: What an attention sub-layer costs besides its heads.
        neuron: One neuron.
        mlp: What an MLP costs besides its neurons.
    """

    base: int
    heads: IntArray
    attention: int
    neuron: int
    mlp: int


@dataclass(frozen=True, eq=False)
class Sizes:
    """The sizes of a choice, per teacher layer ``[layers]``, before attention is rescued.

    Attributes:
        hidden: Residual channels.
        kept: The layers the choice keeps.
        kv_heads: Key-value heads, whether or not the layer is kept.
        queries: Query heads per key-value head.
        neurons: MLP neurons.
        rescued: The layer that gets its best key-value head back because no layer keeps attention; else -1.
    """

    hidden: int
    kept: BoolArray
    kv_heads: IntArray
    queries: IntArray
    neurons: IntArray
    rescued: int

    def layer_shapes(self) -> list[tuple[int, LayerShape]]:
        """The source and shape of every layer that keeps something."""
        shapes = []
        sizes = zip(
            self.kept.tolist(), self.kv_heads.tolist(), self.queries.tolist(), self.neurons.tolist(), strict=True
        )
        for source, (kept, kv_heads, queries, neurons) in enumerate(sizes):
            kv_heads = 1 if source == self.rescued else kv_heads
            if kept and (kv_heads or neurons):
                shapes.append((source, LayerShape(kv_heads * queries, kv_heads, neurons)))
        return shapes


class Sizer:
    """Reads sizes off choices."""

    def __init__(self, axes: dict[str, BoundAxis], teacher: Architecture) -> None:
        self.axes = axes
        self.teacher = teacher
        self.num_layers = teacher.num_hidden_layers
        self._layer_order = axes["layers"].order[0]

    def expand(self, genes: IntArray) -> Choice:
        """The choice that genes make."""
        return Choice(**{name: axis.expand(genes) for name, axis in self.axes.items()})

    def contract(self, choice: Choice) -> IntArray:
        """The genes of a choice."""
        return np.concatenate([axis.contract(choice.mask(name)) for name, axis in self.axes.items()])

    def kept_layers(self, choice: Choice) -> BoolArray:
        """``[layers]``: which layers a choice keeps, in the teacher's order."""
        kept = np.zeros(self.num_layers, dtype=bool)
        kept[self._layer_order[np.repeat(choice.layers[0], self.axes["layers"].sizes)]] = True
        return kept

    def per_layer(self, choice: Choice, name: str) -> BoolArray:
        """The mask of heads, queries or neurons as ``[layers, blocks]``, whoever makes the choice."""
        mask = choice.mask(name)
        return np.broadcast_to(mask, (self.num_layers, mask.shape[1]))

    def measure(self, choice: Choice) -> Sizes:
        """The sizes of a choice."""
        units = {
            name: np.broadcast_to(choice.mask(name) @ self.axes[name].sizes, (self.num_layers,))
            for name in ("heads", "queries", "neurons")
        }
        kept = self.kept_layers(choice)
        lost = not units["heads"][kept].any()
        rescued = self._rescued(kept) if lost else -1
        hidden = int(choice.hidden[0] @ self.axes["hidden"].sizes)
        return Sizes(hidden, kept, units["heads"], units["queries"], units["neurons"], rescued)

    def _rescued(self, kept: BoolArray) -> int:
        """The best kept layer that has heads, where the teacher has any left in one of those kept."""
        has = np.broadcast_to(self.axes["heads"].allowed.any(axis=1), (self.num_layers,))
        among = kept & has if np.any(kept & has) else kept
        return int(next(layer for layer in self._layer_order if among[layer]))


class CostModel:
    """The exact cost of choices in one budget quantity."""

    def __init__(self, sizer: Sizer, quantity: str, sequence_length: int) -> None:
        self.sizer = sizer
        self.quantity = quantity
        self.sequence_length = sequence_length
        self._rates: dict[int, Rates] = {}

    def rates(self, hidden: int) -> Rates:
        """What units cost at a hidden size."""
        if hidden not in self._rates:
            self._rates[hidden] = self._measure_rates(hidden)
        return self._rates[hidden]

    def _measure_rates(self, hidden: int) -> Rates:
        def cost(*layers: LayerShape) -> int:
            architecture = Architecture(self.sizer.teacher.structure, hidden, layers)
            return measure_cost(architecture, self.quantity, self.sequence_length)

        base = cost()
        shape = self.sizer.teacher.layers[0]
        heads = np.zeros(shape.num_attention_heads // shape.num_key_value_heads + 1, dtype=np.int64)
        for queries in range(1, len(heads)):
            heads[queries] = cost(LayerShape(2 * queries, 2, 0)) - cost(LayerShape(queries, 1, 0))
        neuron = cost(LayerShape(0, 0, 2)) - cost(LayerShape(0, 0, 1))
        attention = cost(LayerShape(1, 1, 0)) - base - int(heads[1])
        return Rates(base, heads, attention, neuron, cost(LayerShape(0, 0, 1)) - base - neuron)

    def sublayers(self, sizes: Sizes, hidden: int | None = None) -> tuple[IntArray, IntArray]:
        """``[layers]`` each: what attention and MLP of each layer cost, whether or not the layer is kept."""
        rates = self.rates(sizes.hidden if hidden is None else hidden)
        attention = sizes.kv_heads * rates.heads[sizes.queries] + rates.attention * (sizes.kv_heads > 0)
        return attention, sizes.neurons * rates.neuron + rates.mlp * (sizes.neurons > 0)

    def of_sizes(self, sizes: Sizes, hidden: int | None = None) -> int:
        """The cost of the sizes of a choice, at its own or another hidden size."""
        rates = self.rates(sizes.hidden if hidden is None else hidden)
        attention, mlp = self.sublayers(sizes, hidden)
        total = rates.base + int((attention + mlp)[sizes.kept].sum())
        if sizes.rescued >= 0:
            total += rates.attention + int(rates.heads[sizes.queries[sizes.rescued]])
        return total

    def of(self, choice: Choice) -> int:
        """The cost of a choice."""
        return self.of_sizes(self.sizer.measure(choice))
