"""The loss on held-out tokens: nats per token, its standard error, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.config.units import perplexity_of_loss
from slm_ray.data.shards import TokenShards
from slm_ray.evaluate.intervals import ratio_stderr

Losses = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""``[batch * (sequence - 1)]`` losses in nats, of ids and positions ``[batch, sequence]``."""


@dataclass(frozen=True)
class HeldOutLoss:
    """What a model makes of held-out text."""

    loss: float  # Mean loss in nats per predicted token
    stderr: float  # Its standard error over sequences; 0 for a single one
    tokens: int  # Tokens that were predicted
    bits_per_byte: float  # The loss per byte of text, in bits, so that tokenizers can be compared

    @property
    def perplexity(self) -> float:
        """``exp(loss)``, infinite where that is no float."""
        return perplexity_of_loss(self.loss) or math.inf


def _sequence_sums(
    losses: Losses, shards: TokenShards, indices: npt.NDArray[np.int64], separate: bool, device: torch.device | str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sum of losses and number of predicted tokens of each sequence."""
    ids = torch.from_numpy(shards.rows(indices).astype(np.int64)).to(device)
    positions, mask = None, np.ones((len(indices), shards.sequence_length - 1))
    if separate:
        places = shards.positions(indices)
        positions = torch.from_numpy(places.astype(np.int64)).to(device)
        mask = (places[:, 1:] > 0).astype(np.float64)
    values = losses(ids, positions).double().cpu().numpy().reshape(mask.shape)
    return np.where(mask > 0, values, 0.0).sum(1), mask.sum(1)


def held_out_sums(
    losses: Losses, shards: TokenShards, *, separate: bool, batch: int = 4, device: torch.device | str = "cpu",
    rank: int = 0, world: int = 1,
) -> torch.Tensor:  # fmt: skip
    """Sums of losses and numbers of predicted tokens of all sequences of some shards.

    With ``separate``, attention stays inside documents, and a document's first token is not counted. Sequences are
    dealt out to the ``world`` workers in turn; all of them call ``losses`` equally often.
    """
    count = shards.num_sequences
    sums = torch.zeros(2, count, dtype=torch.float64)
    share = -(-count // world)
    mine = np.arange(rank, rank + share * world, world)
    for start in range(0, share, batch):
        part = mine[start : start + batch]
        total, tokens = _sequence_sums(losses, shards, part % count, separate, device)
        real = part < count
        sums[0, part[real]] = torch.from_numpy(total[real])
        sums[1, part[real]] = torch.from_numpy(tokens[real])
    return sums


def held_out_loss(
    losses: Losses, shards: TokenShards, *, separate: bool, batch: int = 4, device: torch.device | str = "cpu",
    rank: int = 0, world: int = 1, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> HeldOutLoss:  # fmt: skip
    """Measure a model on all sequences of some shards, the same on every worker; see :func:`held_out_sums`.

    ``reduce`` sums a tensor over all workers.
    """
    sums = held_out_sums(losses, shards, separate=separate, batch=batch, device=device, rank=rank, world=world)
    return summarise(sums if reduce is None else reduce(sums), shards)


def summarise(sequence_sums: torch.Tensor, shards: TokenShards) -> HeldOutLoss:
    """What a model makes of held-out text, from the sums ``[2, sequences]`` of :func:`held_out_sums`."""
    totals, counts = sequence_sums.numpy()
    tokens = counts.sum()
    loss = float(totals.sum() / max(tokens, 1))
    bits = loss * shards.num_tokens / (max(shards.num_bytes, 1) * math.log(2))
    with np.errstate(invalid="ignore"):  # a loss without bound has no error
        return HeldOutLoss(loss, ratio_stderr(totals, counts) or 0.0, int(tokens), bits)
