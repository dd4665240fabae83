"""The order in which sequences are trained on: a pure function of the seed and the position."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from slm_ray.config.errors import UserError

_ROUNDS = 8
_DRAW_SEED = -1  # of the sequences that a part of some shards consists of; no run's own


class SequenceOrder:
    """Every sequence once per epoch, each epoch in another order.

    Position ``p`` belongs to epoch ``p // num_sequences``. Within an epoch the order is a keyed permutation that is
    computed for the positions asked for and no others: a Feistel network over the smallest domain of 4**h numbers that
    holds them all, walked until it lands inside (Luby and Rackoff, 1988; Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains", 2002). So nothing has to be kept to resume in the middle of an epoch, and the number of workers
    has no part in it.
    """

    def __init__(self, num_sequences: int, seed: int) -> None:
        if num_sequences < 1:
            raise UserError(f"an order needs at least 1 sequence, got {num_sequences}")
        self.num_sequences = num_sequences
        self.seed = seed
        self._half_bits = max(1, -(-(num_sequences - 1).bit_length() // 2))
        self._key = int.from_bytes(hashlib.sha256(f"slm_ray sequence order {seed}".encode()).digest()[:8], "big")

    def indices(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """The sequences at ``count`` positions from ``first`` on.

        Returns int64 ``[count]``, each from 0 to ``num_sequences`` - 1.
        """
        return self.at(np.arange(first, first + count, dtype=np.int64))

    def at(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sequences at any positions, int64 of the same shape ``[count]``."""
        epochs, places = np.divmod(positions, self.num_sequences)
        keys = _mix(epochs.astype(np.uint64) + np.uint64(self._key))
        values = self._permute(places.astype(np.uint64), keys)
        outside = np.flatnonzero(values >= self.num_sequences)
        while outside.size:
            values[outside] = self._permute(values[outside], keys[outside])
            outside = outside[values[outside] >= self.num_sequences]
        return values.astype(np.int64)

    def _permute(self, values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """A bijection of the numbers below ``4**h``, one per key."""
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> bits, values & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(_mix(right + np.uint64(number << 56)) ^ keys) & mask)
        return (left << bits) | right


def draw_order(num_sequences: int) -> SequenceOrder:
    """The order in which sequences are taken where not all of some shards are used, the same for every run."""
    return SequenceOrder(num_sequences, _DRAW_SEED)


def drawn_sequences(num_sequences: int, count: int) -> npt.NDArray[np.int64]:
    """The first ``count`` sequences of :func:`draw_order`, rising; all where there are no more."""
    if count >= num_sequences:
        return np.arange(num_sequences, dtype=np.int64)
    return np.sort(draw_order(num_sequences).indices(0, count))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014); sums and products wrap around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
