"""Genomes of one space bound to several unit rankings and vocabularies, as one whose first gene says which is meant.

Rankings learned at different sizes order a layer's neurons differently, so a block of one is no block of another. A
candidate names the ranking its blocks are of and its vocabulary, and the search finds out which serve it best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from slm_ray.config.errors import UserError
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import Budget
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search.axes import IntArray
from slm_ray.search.genome import Genome

COST_STEPS = 32  # the budget's range is searched in this many steps of cost; closer costs count as equal


class GenomeStack:
    """One or more genomes of the same space and teacher.

    Attributes:
        genomes: One per vocabulary and ranking
        sizes: The cost that each one's ranking is meant for, in the budget's quantity; None where they are for any
        vocabularies: Places of the genomes of each vocabulary, the likeliest first
        num_genes: One more than each of them has
        lower: ``[genes]``, the least value of each
        upper: ``[genes]``, the greatest value of each
    """

    def __init__(
        self, genomes: Sequence[Genome], budget: Budget, sequence_length: int, sizes: Sequence[int] | None = None
    ) -> None:
        """Stack genomes and check that their space can meet a budget.

        ``sequence_length``: The context at which FLOPs are counted.
        """
        self.genomes, self.budget, self.sequence_length = tuple(genomes), budget, sequence_length
        self.sizes = None if sizes is None else tuple(sizes)
        first = self.genomes[0]
        for genome in self.genomes:
            genome.check_budget(budget, sequence_length)
        places: dict[int, list[int]] = {}
        for place, genome in enumerate(self.genomes):
            places.setdefault(genome.teacher.structure.vocab_size, []).append(place)
        self.vocabularies = tuple(places.values())
        self.teacher, self.space = first.teacher, first.space
        self.num_genes = first.num_genes + 1
        self.lower = np.concatenate([[0], first.lower])
        self.upper = np.concatenate([[len(self.genomes) - 1], first.upper])

    def of(self, genes: IntArray) -> Genome:
        """The genome that the first gene names."""
        return self.genomes[int(genes[0])]

    def decode(self, genes: IntArray) -> SubnetSpec:
        """The sub-network that genes stand for."""
        return self.of(genes).decode(genes[1:])

    def architecture(self, genes: IntArray) -> Architecture:
        """Its sizes."""
        return self.of(genes).architecture(genes[1:])

    def cost(self, genes: IntArray, quantity: str | None = None) -> int:
        """Its cost, in the budget's quantity unless another is named."""
        return self.of(genes).cost(genes[1:], quantity or self.budget.quantity, self.sequence_length)

    def repair(self, genes: IntArray, low: int | None = None, high: int | None = None) -> IntArray:
        """Genes inside the budget, and where the budget allows it inside ``low..high``.

        The least worthy units are pruned, or the worthiest added.
        """
        narrow = Budget(
            self.budget.quantity,
            min(max(self.budget.low, low or 0), self.budget.high),
            max(min(self.budget.high, high if high is not None else self.budget.high), self.budget.low),
        )
        genome, own = self.of(genes), genes[1:]
        try:
            own = genome.repair(own, narrow, self.sequence_length)
        except UserError:
            pass  # nothing fits so narrow a range
        # Within the budget this changes nothing, unless only sizes outside the narrow range suit the plain class.
        return self._join(genes[0], genome.repair(own, self.budget, self.sequence_length))

    def random(self, rng: np.random.Generator, target: int | None = None) -> IntArray:
        """Random genes inside the budget; importance plays no part in what is kept."""
        which = int(rng.integers(len(self.genomes)))
        return self._join(which, self.genomes[which].random(rng, self.budget, self.sequence_length, target))

    def ranked(self, which: int, target: int) -> IntArray:
        """The genes that one ranking alone gives at a target cost."""
        return self._join(which, self.genomes[which].ranked(target, self.budget, self.sequence_length))

    def nearest(self, cost: float, vocabulary: int | None = None) -> list[int]:
        """Of each vocabulary the genome whose ranking is meant for the size nearest to a cost; all that are for any.

        ``vocabulary``: Only of this one of them.
        """
        sizes, among = self.sizes, self.vocabularies if vocabulary is None else (self.vocabularies[vocabulary],)
        if sizes is None:
            return [place for places in among for place in places]
        return [min(places, key=lambda place: abs(sizes[place] - cost)) for places in among]

    def reach(self) -> tuple[int, int]:
        """The costs that are both inside the budget and expressible, with any of the vocabularies."""
        firsts = (self.genomes[places[0]] for places in self.vocabularies)
        least, most = zip(*(one.reach(self.budget.quantity, self.sequence_length) for one in firsts), strict=True)
        return max(min(least), self.budget.low), min(max(most), self.budget.high)

    def step_of(self, cost: float) -> float:
        """The cost at the upper end of the step that a cost in the budget's quantity lies in."""
        low, high = self.reach()
        width = max(1.0, (high - low) / COST_STEPS)
        return high - width * math.floor((high - cost) / width + 1e-9)

    def to_text(self, genes: IntArray) -> str:
        """A short line of text; :meth:`from_text` reads it back."""
        return f"{int(genes[0])}|{self.of(genes).to_text(genes[1:])}"

    def from_text(self, text: str) -> IntArray:
        """Read what :meth:`to_text` wrote."""
        which, bar, rest = text.partition("|")
        if not bar or not which.isdigit() or int(which) >= len(self.genomes):
            raise UserError(
                f"genes '{text[:40]}' do not name one of {len(self.genomes)} rankings and vocabularies: the record is "
                "of another run"
            )
        return self._join(int(which), self.genomes[int(which)].from_text(rest))

    @staticmethod
    def _join(which: int, genes: IntArray) -> IntArray:
        return np.concatenate([[int(which)], genes]).astype(np.int64)
