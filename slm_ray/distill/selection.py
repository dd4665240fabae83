"""The likeliest ids, and ids drawn at random, from final hidden states: exact, and cheap beside the model itself.

The vocabulary is read once, a slice at a time. Each slice is dealt into small blocks, of which the greatest logit and
the sum of exponentials are kept. The ``k`` blocks of the greatest maxima hold the ``k`` greatest logits, so only those
are looked into; a draw picks a block by its sum first and an id inside it second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slm_ray.config.errors import UserError
from slm_ray.models.lm_head import capped, spans

BLOCK_IDS = 16
SLICE_IDS = 4096
TOKEN_GROUP = 512  # tokens that share one reading of the output head
_CACHED_ROWS = 64  # 64 x 4,096 fp32 logits are 1 MiB: a core's own cache holds them from one step to the next
_MOST_GATHERED = 1 << 22  # logits that are looked into at once


@dataclass(frozen=True)
class TopK:
    """The likeliest ids of every token."""

    ids: torch.Tensor  # ``[tokens, k]`` int64, the likeliest first
    log_probs: torch.Tensor  # ``[tokens, k]`` fp32, in nats
    # ``[tokens]`` fp32, the log of what all other ids have together; ``-inf`` where that is nothing
    tail_log_mass: torch.Tensor


@dataclass(frozen=True)
class Draws:
    """Ids drawn for every token, each once with how often it came."""

    lengths: torch.Tensor  # ``[tokens]`` int64, different ids of each token
    ids: torch.Tensor  # ``[values]`` int64, those of the first token first, rising within a token
    counts: torch.Tensor  # ``[values]`` int64, how often each was drawn


@dataclass(frozen=True)
class LogitBlocks:
    """The logits of a group of tokens, and what is known of their blocks.

    Within a slice, column ``c`` of a ``[16, columns]`` view is a block: its ids lie ``columns`` apart, so that maxima
    and sums run down columns, which processors do many at a time.
    """

    logits: torch.Tensor  # ``[slices, tokens, width]``; ``-inf`` beyond the vocabulary
    maxima: torch.Tensor  # ``[tokens, blocks]`` fp32, each block's greatest logit
    sums: torch.Tensor  # ``[tokens, blocks]`` fp32, each block's sum of ``exp((logit - peak) / temperature)``
    peak: torch.Tensor  # ``[tokens, 1]`` fp32, the greatest logit
    temperature: float  # What logits are divided by

    def ids(self, blocks: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Ids of the ``inside``-th ids (0 to 15) of blocks, of the two's common shape."""
        width = self.logits.shape[-1]
        columns = width // BLOCK_IDS
        return blocks // columns * width + blocks % columns + inside * columns

    def look_into(self, blocks: torch.Tensor) -> torch.Tensor:
        """The fp32 logits of ``[tokens, n]`` blocks, as ``[tokens, n, 16]``."""
        _, tokens, width = self.logits.shape
        columns = width // BLOCK_IDS
        token = torch.arange(tokens, device=blocks.device)[:, None]
        first = (blocks // columns * tokens + token) * width + blocks % columns
        inside = torch.arange(BLOCK_IDS, device=blocks.device) * columns
        return self.logits.view(-1)[first[..., None] + inside].float()

    def weights(self, logits: torch.Tensor) -> torch.Tensor:
        """``exp((logit - peak) / temperature)`` of ``[tokens, …]`` logits: probabilities that are not normalised."""
        return ((logits - self.peak.view(-1, *[1] * (logits.ndim - 1))) / self.temperature).exp()


def read_blocks(
    hidden: torch.Tensor, head: torch.Tensor, temperature: float = 1.0, cap: float | None = None
) -> LogitBlocks:
    """Multiply hidden states with the output head, and sum up each slice's blocks while it is in the cache.

    ``hidden``: ``[tokens, d]`` final hidden states. ``head``: ``[vocabulary, d]`` output head, of the same type.
    """
    tokens, vocabulary = len(hidden), len(head)
    width = min(SLICE_IDS, -(-vocabulary // BLOCK_IDS) * BLOCK_IDS)
    parts = list(spans(vocabulary, width))
    shape = (tokens, len(parts), width // BLOCK_IDS)
    logits = hidden.new_empty(len(parts), tokens, width)
    maxima, sums = (hidden.new_empty(shape, dtype=torch.float32) for _ in range(2))
    peaks = maxima.new_empty(tokens, len(parts), 1)
    rows = min(_CACHED_ROWS, tokens) if hidden.device.type == "cpu" else tokens
    room = maxima.new_empty(rows, BLOCK_IDS, shape[-1])  # reused, so that it stays in the cache
    for number, part in enumerate(parts):
        if part.stop - part.start == width:
            capped(torch.mm(hidden, head[part].t(), out=logits[number]), cap)
        else:
            logits[number] = float("-inf")
            logits[number, :, : part.stop - part.start] = capped(hidden @ head[part].t(), cap)
        for group in spans(tokens, rows):
            values = logits[number, group].view(-1, BLOCK_IDS, shape[-1])
            scaled = room[: len(values)]
            if values.dtype != torch.float32:
                values = scaled.copy_(values)
            torch.amax(values, 1, out=maxima[group, number])
            peak = torch.amax(maxima[group, number], 1, keepdim=True, out=peaks[group, number])
            torch.sub(values, peak[:, None], out=scaled)
            if temperature != 1:
                scaled /= temperature
            torch.sum(scaled.exp_(), 1, out=sums[group, number])
    peak = peaks.amax(1)
    if not torch.isfinite(peak).all():
        raise UserError("the teacher's logits are no finite numbers: download it again, or give --precision fp32")
    sums *= ((peaks - peak[:, None]) / temperature).exp()
    return LogitBlocks(logits, maxima.flatten(1), sums.flatten(1), peak, temperature)


def take_top(blocks: LogitBlocks, k: int) -> TopK:
    """The ``k`` likeliest ids and the mass of the rest.

    The rest is summed up from what was not taken, and not as one minus what was: it keeps its digits however small.
    Of ids with equal logits at the end of the list, any may be taken.

    ``k``: Ids per token, at most the vocabulary.
    """
    chosen = blocks.maxima.topk(min(k, blocks.maxima.shape[1]), sorted=False).indices
    logits = blocks.look_into(chosen)
    top, places = logits.flatten(1).topk(k)
    weights = blocks.weights(logits).flatten(1)
    left = weights.scatter(1, places, 0).sum(1)
    tail = left + blocks.sums.scatter(1, chosen, 0).sum(1)
    head = weights.gather(1, places).sum(1)
    log_probs = (top - blocks.peak) / blocks.temperature - (tail + head).log()[:, None]
    ids = blocks.ids(chosen.gather(1, places // BLOCK_IDS), places % BLOCK_IDS)
    return TopK(ids, log_probs, -torch.log1p(head / tail))


def draw_ids(blocks: LogitBlocks, points: torch.Tensor) -> Draws:
    """Draw ids by inverting the cumulative distribution: a point picks a block, its rest an id in it.

    ``points``: ``[tokens, draws]`` float64 in ``[0, 1)``; an id of probability ``p`` gets a share ``p`` of that range.
    """
    ends = blocks.sums.double().cumsum(1)
    targets = points * ends[:, -1:]
    chosen = torch.searchsorted(ends, targets, right=True)
    starts = torch.where(chosen > 0, ends.gather(1, (chosen - 1).clamp_min(0)), 0)
    share = (targets - starts) / (ends.gather(1, chosen) - starts)
    inner = blocks.weights(blocks.look_into(chosen)).cumsum(-1)
    whole = inner[..., -1:]
    # The second bound keeps a share that was rounded up to one off ids of no probability at all.
    passed = torch.minimum((inner <= share[..., None] * whole).sum(-1), (inner < whole).sum(-1))
    return _counted(blocks.ids(chosen, passed))


def _counted(drawn: torch.Tensor) -> Draws:
    """``[tokens, draws]`` ids, each once with how often it came."""
    tokens, draws = drawn.shape
    ordered = drawn.sort(dim=1).values
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = is_first.flatten().nonzero().squeeze(1)
    counts = torch.diff(starts, append=starts.new_tensor([tokens * draws]))
    return Draws(is_first.sum(1), ordered.flatten()[starts], counts)


def top_k(
    hidden: torch.Tensor, head: torch.Tensor, k: int, temperature: float = 1.0, cap: float | None = None
) -> TopK:
    """The likeliest ids of any number of tokens, a group at a time.

    ``hidden``: ``[tokens, d]`` final hidden states. ``head``: ``[vocabulary, d]`` output head, of the same type. ``k``:
    Ids per token, at most the vocabulary.
    """
    groups = spans(len(hidden), _group_size(k))
    parts = [take_top(read_blocks(hidden[group], head, temperature, cap), k) for group in groups]
    return TopK(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "log_probs", "tail_log_mass")))


def sample(
    hidden: torch.Tensor, head: torch.Tensor, points: torch.Tensor, temperature: float = 1.0, cap: float | None = None
) -> Draws:
    """Ids drawn for any number of tokens, a group at a time.

    ``hidden``: ``[tokens, d]`` final hidden states. ``head``: ``[vocabulary, d]`` output head, of the same type.
    ``points``: ``[tokens, draws]`` float64 in ``[0, 1)``.
    """
    parts = [
        draw_ids(read_blocks(hidden[group], head, temperature, cap), points[group])
        for group in spans(len(hidden), _group_size(points.shape[1]))
    ]
    return Draws(*(torch.cat([getattr(part, name) for part in parts]) for name in ("lengths", "ids", "counts")))


def _group_size(blocks_looked_into: int) -> int:
    return max(16, min(TOKEN_GROUP, _MOST_GATHERED // (blocks_looked_into * BLOCK_IDS)))
