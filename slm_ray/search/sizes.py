"""Sizes and costs of a choice, without building the sub-network.

A cost is affine in the units of each layer, so a handful of rates per width, measured with the exact cost functions on
tiny architectures, gives the cost of any choice in a few vector operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.budget import measure_cost
from slm_ray.records.cost import attended_tokens
from slm_ray.search.axes import BoolArray, BoundAxis, IntArray


@dataclass(frozen=True, eq=False)
class ChoiceSizes:
    """The sizes of a choice, per teacher layer ``[layers]``."""

    hidden: int  # Residual channels
    kept: BoolArray  # The layers the choice keeps
    kv_heads: IntArray  # Key-value heads, whether or not the layer is kept, and before attention is rescued
    queries: IntArray  # Query heads per key-value head
    neurons: IntArray  # MLP neurons
    rescued: int  # The layer that gets its best key-value head back because no layer keeps attention; else -1

    def layer_shapes(self, teacher: Architecture) -> list[tuple[int, LayerShape]]:
        """The source and shape of every layer that keeps something."""
        shapes = []
        lists = (self.kept.tolist(), self.kv_heads.tolist(), self.queries.tolist(), self.neurons.tolist())
        for source, (kept, kv_heads, queries, neurons) in enumerate(zip(*lists, strict=True)):
            kv_heads = 1 if source == self.rescued else kv_heads
            if kept and (kv_heads or neurons):
                window = teacher.layers[source].sliding_window if kv_heads else 0
                shapes.append((source, LayerShape(kv_heads * queries, kv_heads, neurons, window)))
        return shapes


@dataclass(frozen=True, eq=False)
class Choice:
    """What a genome says: which blocks are kept along each axis."""

    axes: Mapping[str, BoundAxis]  # The bound axes by name
    masks: dict[str, BoolArray]  # By axis, ``[rows, blocks]``; they may be changed in place

    @classmethod
    def of(cls, axes: Mapping[str, BoundAxis], genes: IntArray) -> Choice:
        """The choice that a whole genome makes."""
        return cls(axes, {name: axis.expand(genes[axis.start : axis.stop]) for name, axis in axes.items()})

    def genes(self) -> IntArray:
        """The genes that make this choice."""
        return np.concatenate([axis.contract(self.masks[name]) for name, axis in self.axes.items()])

    def copy(self) -> Choice:
        """A choice that may be changed without changing this one."""
        return Choice(self.axes, {name: mask.copy() for name, mask in self.masks.items()})

    @property
    def num_layers(self) -> int:
        """How many layers the teacher has."""
        return int(self.axes["layers"].order.shape[-1])

    def kept_layers(self) -> BoolArray:
        """``[layers]``: which layers are kept, in the teacher's order."""
        axis, kept = self.axes["layers"], np.zeros(self.num_layers, dtype=bool)
        kept[axis.order[0][np.repeat(self.masks["layers"][0], axis.sizes)]] = True
        return kept

    def per_layer(self, name: str) -> BoolArray:
        """The mask of heads, queries or neurons as ``[layers, blocks]``, whoever makes the choice."""
        mask = self.masks[name]
        return np.broadcast_to(mask, (self.num_layers, mask.shape[1]))

    def sizes(self) -> ChoiceSizes:
        """Its sizes."""
        units = {
            name: np.broadcast_to(self.masks[name] @ self.axes[name].sizes, (self.num_layers,))
            for name in ("heads", "queries", "neurons")
        }
        kept, order = self.kept_layers(), self.axes["layers"].order[0]
        rescued = -1 if units["heads"][kept].any() else int(next(layer for layer in order if kept[layer]))
        hidden = int(self.masks["hidden"][0] @ self.axes["hidden"].sizes)
        return ChoiceSizes(hidden, kept, units["heads"], units["queries"], units["neurons"], rescued)


@dataclass(frozen=True, eq=False)
class Rates:
    """What units cost at one hidden size, in a budget quantity."""

    base: int  # The model without layers
    heads: IntArray  # ``[layers, queries + 1]``, one key-value head with this many query heads (entry 0 is unused)
    attention: int  # What an attention sub-layer costs besides its heads
    neuron: int  # One neuron
    mlp: int  # What an MLP costs besides its neurons

    def each_head(self, queries: IntArray) -> IntArray:
        """``[layers]``: what a key-value head with this many query heads costs in each layer."""
        return np.asarray(self.heads[np.arange(len(queries)), queries])


class CostModel:
    """The exact cost of choices in one budget quantity.

    Attributes:
        teacher: The teacher's sizes
        quantity: ``params``, ``flops`` or ``kv_bytes``
        sequence_length: The context at which FLOPs are counted
    """

    def __init__(self, teacher: Architecture, quantity: str, sequence_length: int) -> None:
        self.teacher, self.quantity, self.sequence_length = teacher, quantity, sequence_length
        self._rates: dict[int, Rates] = {}
        is_bounded = quantity != "params"
        self._attended = [attended_tokens(layer, sequence_length) if is_bounded else 0 for layer in teacher.layers]

    @property
    def is_even(self) -> bool:
        """A unit costs as much in one layer as in another; else some have windows shorter than the context."""
        return len(set(self._attended)) == 1

    def rates(self, hidden: int) -> Rates:
        """What units cost at a hidden size."""
        if hidden not in self._rates:
            self._rates[hidden] = self._measure_rates(hidden)
        return self._rates[hidden]

    def _measure_rates(self, hidden: int) -> Rates:
        def cost(*layers: LayerShape) -> int:
            architecture = Architecture(self.teacher.structure, hidden, layers)
            return measure_cost(architecture, self.quantity, self.sequence_length)

        base, shape = cost(), self.teacher.layers[0]
        width = shape.num_attention_heads // shape.num_key_value_heads + 1
        of_window: dict[int, list[int]] = {}
        for window in {layer.sliding_window for layer in self.teacher.layers}:
            one, two = ([cost(LayerShape(n * q, n, 0, window)) for q in range(1, width)] for n in (1, 2))
            of_window[window] = [0, *(more - less for less, more in zip(one, two, strict=True))]
        heads = np.array([of_window[layer.sliding_window] for layer in self.teacher.layers], dtype=np.int64)
        neuron = cost(LayerShape(0, 0, 2)) - cost(LayerShape(0, 0, 1))
        attention = cost(LayerShape(1, 1, 0, shape.sliding_window)) - base - int(heads[0, 1])
        return Rates(base, heads, attention, neuron, cost(LayerShape(0, 0, 1)) - base - neuron)

    def sublayers(self, sizes: ChoiceSizes, hidden: int | None = None) -> tuple[IntArray, IntArray]:
        """``[layers]`` each: the costs of attention and MLP of each layer, whether or not the layer is kept."""
        rates = self.rates(sizes.hidden if hidden is None else hidden)
        attention = sizes.kv_heads * rates.each_head(sizes.queries) + rates.attention * (sizes.kv_heads > 0)
        return attention, sizes.neurons * rates.neuron + rates.mlp * (sizes.neurons > 0)

    def of_sizes(self, sizes: ChoiceSizes, hidden: int | None = None) -> int:
        """The cost of the sizes of a choice, at its own or another hidden size."""
        rates = self.rates(sizes.hidden if hidden is None else hidden)
        attention, mlp = self.sublayers(sizes, hidden)
        total = rates.base + int((attention + mlp)[sizes.kept].sum())
        if sizes.rescued >= 0:
            total += rates.attention + int(rates.heads[sizes.rescued, sizes.queries[sizes.rescued]])
        return total

    def of(self, choice: Choice) -> int:
        """The cost of a choice."""
        return self.of_sizes(choice.sizes())
