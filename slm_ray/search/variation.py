"""How a search varies sub-networks: moving budget between layers, changing size, and mixing parents layer by layer."""

from __future__ import annotations

import numpy as np

from slm_ray.search.axes import GeneGroup, IntArray
from slm_ray.search.stack import GenomeStack

_MOVE_SIZES = (1, 1, 1, 2)
_LAYER_SHARE = 0.02  # of steps switch whole layers; the rest change sizes within layers, or of the model
_RESIZE_SHARE = 0.15  # of mutations change the size as well
_SWITCH_SHARE = 0.05  # of mutations read the genes with another ranking
_SCATTER_SHARE = 0.1  # of steps take any block of a subset, not the one at the edge of the ranking


class Variation:
    """Mutation and crossover of one genome stack. All randomness comes from the generator given."""

    def __init__(self, stack: GenomeStack) -> None:
        self.stack = stack
        self.groups: tuple[GeneGroup, ...] = stack.genomes[0].groups
        self._whole_layers = [group for group in self.groups if group.axis == "layers"]
        self._sizes = [group for group in self.groups if group.axis != "layers"] or self._whole_layers

    def mutate(self, genes: IntArray, rng: np.random.Generator) -> IntArray:
        """A neighbour: budget moved from some choices to others, at the parent's cost or just below it.

        A few mutations change the size instead, to a cost drawn from the budget, and a few read the genes with another
        ranking of the units.
        """
        child = genes.copy()
        if len(self.stack.genomes) > 1 and rng.random() < _SWITCH_SHARE:
            child[0] = rng.integers(len(self.stack.genomes))
        ceiling = self.stack.cost(genes)
        if rng.random() < _RESIZE_SHARE:
            low, high = self.stack.reach()
            ceiling = int(rng.integers(low, high + 1))
        floor = int(0.995 * ceiling)
        if self.groups:
            for _ in range(rng.geometric(0.6)):
                self._step(child, rng, prune=True)
                self._step(child, rng, prune=False)
        return self.stack.repair(child, low=min(floor, ceiling), high=ceiling)

    def _step(self, genes: IntArray, rng: np.random.Generator, *, prune: bool) -> None:
        """Prune some blocks of one choice, or add some to it."""
        layers_turn = self._whole_layers and rng.random() < _LAYER_SHARE
        among = self._whole_layers if layers_turn else self._sizes
        group = among[int(rng.integers(len(among)))]
        part = slice(group.start + 1, group.stop + 1)  # the first gene names the ranking
        amount = int(rng.choice(_MOVE_SIZES))
        if group.is_count:
            changed = genes[part] + (-amount if prune else amount)
            genes[part] = np.clip(changed, self.stack.lower[part], self.stack.upper[part])
            return
        bits = genes[part]
        open_blocks = np.flatnonzero(bits if prune else self.stack.upper[part] - bits)
        if not len(open_blocks):
            return
        if rng.random() < _SCATTER_SHARE:
            chosen = rng.choice(open_blocks, size=min(amount, len(open_blocks)), replace=False)
        else:
            chosen = open_blocks[-amount:] if prune else open_blocks[:amount]
        bits[chosen] = 0 if prune else 1

    def cross(self, first: IntArray, second: IntArray, rng: np.random.Generator) -> IntArray:
        """A child that takes each choice (a layer's heads, say) whole from one parent or the other.

        It is brought to a cost between its parents'.
        """
        child = first.copy()
        for group in self.groups:
            if rng.random() < 0.5:
                part = slice(group.start + 1, group.stop + 1)
                child[part] = second[part]
        costs = sorted((self.stack.cost(first), self.stack.cost(second)))
        return self.stack.repair(child, low=int(0.995 * costs[0]), high=costs[1])
