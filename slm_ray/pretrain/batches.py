"""Which sequences a worker sees at a step, how much each of their tokens weighs, and how many fit at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from slm_ray.data.order import SequenceOrder, draw_order
from slm_ray.data.shards import TokenShards
from slm_ray.pretrain.engine import Place

STATE_BYTES = 16  # per parameter, in training: its gradient, two moments, and what an engine copies
CPU_TOKENS = 2048  # per forward pass; more at once do not run faster on a CPU


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    indices: npt.NDArray[np.int64]  # Numbers of the sequences in the shards, int64 [batch]
    ids: torch.Tensor  # Token ids, int64 [batch, sequence]
    # Positions within documents, int64 [batch, sequence]; None where attention crosses documents
    positions: torch.Tensor | None
    weights: torch.Tensor  # What each predicted token counts in the loss, fp32 [batch * (sequence - 1)]


def target_mask(positions: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """1 where the next token belongs to the same document, 0 where a document begins, which nothing predicts.

    ``positions``: ``[batch, sequence]`` positions within documents.
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

        ``sequences``: Train on so many of the shards' sequences, drawn at random, the same for every seed; None: all.
        """
        self.shards, self.separate = shards, separate
        self.order = SequenceOrder(min(sequences or shards.num_sequences, shards.num_sequences), seed)
        self._drawn = draw_order(shards.num_sequences)
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def at(self, step: int, micro_batch: int) -> Iterator[MicroBatch]:
        """This worker's share of a step, in micro-batches.

        The weights sum to ``world * number of micro-batches`` over the whole step, because the engine takes the mean
        over both.
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


def divisors(share: int) -> list[int]:
    """The micro-batches that divide a worker's share, largest first."""
    return [size for size in range(share, 0, -1) if share % size == 0]


def default_micro_batch(share: int, sequence_length: int, place: Place) -> int:
    """A worker's whole share on a GPU; on a CPU as much as runs fastest, so that activations do not fill the memory."""
    if place.device.type == "cuda":
        return share
    return next((size for size in divisors(share) if size * sequence_length <= CPU_TOKENS), 1)


def find_micro_batch(try_batch: Callable[[int], None], share: int, place: Place, *, reserve: int = 0) -> int:
    """The largest micro-batch that fits on a GPU, with ``reserve`` bytes to spare: tried from the largest down."""
    found = 1  # its own error will say what to do
    for size in divisors(share):
        if _fits(try_batch, size, reserve):
            found = size
            break
        torch.cuda.empty_cache()  # out here, where the error holds nothing any more
    if place.world > 1:
        least = torch.tensor([found], device=place.device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        found = int(least.item())
    return next(size for size in divisors(share) if size <= found)


def _fits(try_batch: Callable[[int], None], size: int, reserve: int) -> bool:
    try:
        held = torch.empty(reserve, dtype=torch.uint8, device="cuda") if reserve else None
        try_batch(size)
        del held
    except torch.cuda.OutOfMemoryError:
        return False
    return True
