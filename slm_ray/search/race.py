"""Losses measured in stages over the same tokens, and stopping a candidate as soon as its rival is seen to beat it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

BLOCK_TOKENS = 64
# A loss this large (perplexity 5e8) says "destroyed" as well as any larger one, and its exponential stays finite.
LARGEST_LOSS = 20.0
_DIGITS = 5
_FEWEST_BLOCKS = 6
# Of 512 tokens. On a processor larger batches are 5% faster and hold twice the activations; a GPU wants work.
_BATCH_SEQUENCES = {"cpu": 2, "cuda": 16}


@dataclass(frozen=True)
class Rival:
    """The member of the front a candidate has to beat: the best of those that cost no more."""

    blocks: tuple[float, ...]  # Its block losses over all calibration tokens, in nats

    @property
    def mean(self) -> float:
        """Its mean loss over all calibration tokens."""
        return float(np.mean(self.blocks))


@dataclass(frozen=True)
class StagedResult:
    """A mean loss as far as it was measured."""

    mean: float  # Of what was measured, nats per token
    stderr: float | None  # Its standard error; None for fewer than two blocks
    blocks: tuple[float, ...]  # Mean loss of each block of about 64 positions
    tokens: int  # Tokens it was measured on
    estimate: float  # The mean over all tokens: with a rival measured on all, that one's plus the paired difference
    is_beaten: bool  # The race stopped it


def paired_difference(blocks: Sequence[float], rival: Rival) -> tuple[float, float]:
    """Mean and standard error of candidate minus rival over the blocks both have.

    The two are measured on the same tokens, so what makes a block hard for both cancels (common random numbers).
    """
    difference = np.asarray(blocks) - np.asarray(rival.blocks[: len(blocks)])
    stderr = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return float(difference.mean()), float(stderr)


def is_beaten(blocks: Sequence[float], rival: Rival | None, confidence: float) -> bool:
    """Whether a candidate is decided to be worse than its rival.

    ``rival``: Whom it has to beat; None where there is nobody.
    """
    if rival is None or len(blocks) < _FEWEST_BLOCKS or len(blocks) >= len(rival.blocks):
        return False
    mean, stderr = paired_difference(blocks, rival)
    return mean > NormalDist().inv_cdf(confidence) * stderr


def full_estimate(blocks: Sequence[float], rival: Rival | None) -> float:
    """The candidate's mean loss over all tokens, estimated from the part it was measured on.

    With a rival measured on all tokens, its known mean plus the paired difference (a control variate); else the mean.
    """
    if rival is None or len(blocks) >= len(rival.blocks):
        return float(np.mean(blocks))
    return rival.mean + paired_difference(blocks, rival)[0]


def block_means(losses: NDArray[np.float64]) -> list[float]:
    """Mean loss of each block of one sequence.

    The blocks of a sequence are as near to 64 positions as lets them differ by at most one, so that the mean of their
    means is the mean loss.

    ``losses``: ``[positions]`` per-token losses in nats.
    """
    blocks = np.array_split(losses, max(1, round(len(losses) / BLOCK_TOKENS)))
    return [round(float(block.mean()), _DIGITS) for block in blocks]


def mean_and_stderr(blocks: Sequence[float]) -> tuple[float, float | None]:
    """Mean of block means and its standard error (None for fewer than two blocks)."""
    values = np.asarray(blocks, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def perplexity_of(loss: float) -> float:
    """The exponential of a mean loss in nats, held finite."""
    return math.exp(min(loss, LARGEST_LOSS))


def batch_sequences(device: torch.device) -> int:
    """How many sequences go through a model at a time."""
    return _BATCH_SEQUENCES.get(device.type, _BATCH_SEQUENCES["cpu"])


def stage_ends(num_sequences: int, sequence_length: int, stage_tokens: Sequence[int]) -> list[int]:
    """After how many sequences each stage ends; the last stage is all of them."""
    ends = {min(max(1, round(tokens / sequence_length)), num_sequences) for tokens in stage_tokens}
    return sorted(ends | {num_sequences})


SequenceLosses = Callable[["torch.Tensor", int], "torch.Tensor"]
"""``[batch, length]`` ids and the number of the first sequence, to ``[batch, positions]`` losses in nats."""


class StagedLoss:
    """Measures a mean loss over calibration sequences, stage by stage, and stops early when beaten."""

    def __init__(self, ids: torch.Tensor, stage_tokens: Sequence[int] = (), confidence: float = 0.9) -> None:
        """Set up.

        ``ids``: ``[sequences, length]`` calibration tokens.
        """
        self.ids, self.confidence = ids, confidence
        self.ends = stage_ends(len(ids), ids.shape[1], stage_tokens)

    def _blocks_by_stage(self, losses: SequenceLosses) -> Iterator[list[float]]:
        """Yield all block losses so far, after each stage."""
        blocks: list[float] = []
        done, batch = 0, batch_sequences(self.ids.device)
        for end in self.ends:
            while done < end:
                stop = min(done + batch, end)
                for row in losses(self.ids[done:stop], done).double().cpu().numpy():
                    blocks.extend(block_means(np.nan_to_num(row, nan=LARGEST_LOSS, posinf=LARGEST_LOSS)))
                done = stop
            yield blocks

    def measure(self, losses: SequenceLosses, rival: Rival | None = None) -> StagedResult:
        """Measure a model.

        ``rival``: Whom it has to beat; None to measure on all tokens.
        """
        beaten = False
        for stage, blocks in enumerate(self._blocks_by_stage(losses), start=1):
            beaten = stage < len(self.ends) and is_beaten(blocks, rival, self.confidence)
            if beaten:
                break
        mean, stderr = mean_and_stderr(blocks)
        tokens = self.ends[stage - 1] * self.ids.shape[1]
        return StagedResult(mean, stderr, tuple(blocks), tokens, full_estimate(blocks, rival), beaten)
