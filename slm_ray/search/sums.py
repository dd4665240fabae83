"""Which totals a number of layers can reach when each takes one of a few values, and how."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from slm_ray.search.axes import BoolArray, IntArray


@functools.lru_cache(maxsize=256)
def _reachable(values: tuple[int, ...], layers: int) -> tuple[BoolArray, ...]:
    """Entry ``n`` says which totals ``n`` of ``layers`` layers can reach, each taking one of the positive values."""
    tables = [np.ones(1, dtype=bool)]
    top = max(values, default=0)
    for count in range(1, layers + 1):
        table = np.zeros(count * top + 1, dtype=bool)
        for value in values:
            table[value : value + len(tables[-1])] |= tables[-1]
        tables.append(table)
    return tuple(tables)


@dataclass(frozen=True)
class Sublayer:
    """What one kind of sub-layer may cost in a layer.

    Attributes:
        values: The positive costs of its units, without what it costs besides; any of them may be taken in any layer.
        fixed: What it costs besides, where it is not skipped.
        may_skip: A layer may skip it.
        if_all_skip: What is paid when every layer skips it.
    """

    values: tuple[int, ...]
    fixed: int
    may_skip: bool
    if_all_skip: int = 0

    @property
    def _unit(self) -> int:
        return max(math.gcd(*self.values), 1)

    def _scaled(self) -> tuple[int, ...]:
        return tuple(sorted({value // self._unit for value in self.values}))

    def _tables(self, layers: int) -> tuple[BoolArray, ...]:
        # Asked for every number of layers in turn: rounding up to a power of two lets one computation serve many.
        return _reachable(self._scaled(), 1 << (layers - 1).bit_length())

    def _counts(self, layers: int) -> range:
        """How many of the layers may keep it."""
        if not self.values:
            return range(0, 1)
        return range(0 if self.may_skip else layers, layers + 1)

    def totals(self, layers: int) -> IntArray:
        """Every total cost that this many layers can reach, ascending."""
        tables = self._tables(layers)
        parts = [
            np.flatnonzero(tables[n]).astype(np.int64) * self._unit + n * self.fixed + (n == 0) * self.if_all_skip
            for n in self._counts(layers)
        ]
        return np.unique(np.concatenate(parts))

    def assign(self, total: int, wanted: list[int]) -> list[int]:
        """Values, 0 where skipped, for layers that together cost ``total``, each as near the wanted one as can be.

        Raises:
            ValueError: The total is none of :meth:`totals`.
        """
        tables = self._tables(len(wanted))
        for count in self._counts(len(wanted)):
            rest, unit = total - count * self.fixed - (count == 0) * self.if_all_skip, self._unit
            if 0 <= rest < len(tables[count]) * unit and rest % unit == 0 and tables[count][rest // unit]:
                return self._walk(tables, count, rest // unit, wanted)
        raise ValueError(f"{len(wanted)} layers cannot cost {total}")

    def _walk(self, tables: tuple[BoolArray, ...], count: int, rest: int, wanted: list[int]) -> list[int]:
        taken = []
        for left, wish in zip(range(len(wanted), 0, -1), wanted, strict=True):
            options = [
                value
                for value in self._scaled()
                if count and 0 <= rest - value < len(tables[count - 1]) and tables[count - 1][rest - value]
            ]
            if count < left:
                options.append(0)
            value = min(options, key=lambda option: abs(option * self._unit - wish))
            taken.append(value * self._unit)
            count, rest = count - (value > 0), rest - value
        return taken
