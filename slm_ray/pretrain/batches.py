"""Which sequences a worker sees at a step, and how much each of their tokens weighs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.data.order import SequenceOrder
from slm_ray.data.shards import TokenShards

_DRAW_SEED = -1  # of the sequences that a part of the shards consists of; no run's own


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes.

    Attributes:
        indices: Numbers of the sequences in the shards, int64 [batch].
        ids: Token ids, int64 [batch, sequence].
        positions: Positions within documents, int64 [batch, sequence]; None where attention crosses documents.
        weights: What each predicted token counts in the loss, fp32 [batch * (sequence - 1)].
    """

    indices: npt.NDArray[np.int64]
    ids: torch.Tensor
    positions: torch.Tensor | None
    weights: torch.Tensor


def target_mask(positions: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """1 where the next token belongs to the same document, 0 where a document begins, which nothing predicts.

    Args:
        positions: ``[batch, sequence]`` positions within documents.

    Returns:
        fp32 ``[batch, sequence - 1]``.
    """
    return (positions[:, 1:] > 0).astype(np.float32)


class Batches:
    """The batches of one worker.

    A step's sequences are consecutive places of the global order, dealt out in equal runs to the workers; so the tokens
    of a step do not depend on how many workers there are.
    """

    def __init__(
        self, shards: TokenShards, seed: int, batch_size: int, *, separate: bool, rank: int = 0, world: int = 1,
        sequences: int | None = None,
    ) -> None:  # fmt: skip
        """Prepare to read.

        Args:
            shards: The tokens.
            seed: Seed of the order.
            batch_size: Sequences of one step, over all workers; a multiple of ``world``.
            separate: Attention stays inside documents.
            rank: This worker.
            world: How many workers there are.
            sequences: Train on so many of the shards' sequences, drawn at random, the same for every seed; None: all.
        """
        self.shards, self.separate = shards, separate
        self.order = SequenceOrder(min(sequences or shards.num_sequences, shards.num_sequences), seed)
        self._drawn = SequenceOrder(shards.num_sequences, _DRAW_SEED)
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def at(self, step: int, micro_batch: int) -> Iterator[MicroBatch]:
        """This worker's share of a step, in micro-batches.

        The weights sum to ``world * number of micro-batches`` over the whole step, because the engine takes the mean
        over both.

        Args:
            step: The 0-based step.
            micro_batch: Sequences per micro-batch; divides the worker's share.
        """
        everyone = self.order.indices(step * self.batch_size, self.batch_size)
        if self.order.num_sequences < self.shards.num_sequences:
            everyone = self._drawn.at(everyone)
        share = self.batch_size // self.world
        mine = everyone[self.rank * share : (self.rank + 1) * share]
        predicted = self._num_targets(everyone)
        scale = self.world * (share // micro_batch) / max(predicted, 1.0)
        for start in range(0, share, micro_batch):
            yield self._micro_batch(mine[start : start + micro_batch], scale)

    def _num_targets(self, indices: npt.NDArray[np.int64]) -> float:
        if not self.separate:
            return float(len(indices) * (self.shards.sequence_length - 1))
        return float(target_mask(self.shards.positions(indices)).sum())

    def _micro_batch(self, indices: npt.NDArray[np.int64], scale: float) -> MicroBatch:
        ids = torch.from_numpy(self.shards.rows(indices).astype(np.int64))
        if not self.separate:
            weights = torch.full((len(indices) * (ids.shape[1] - 1),), scale, dtype=torch.float32)
            return MicroBatch(indices, ids, None, weights)
        positions = self.shards.positions(indices)
        weights = torch.from_numpy(target_mask(positions).reshape(-1) * np.float32(scale))
        return MicroBatch(indices, ids, torch.from_numpy(positions.astype(np.int64)), weights)
