"""How many sequences fit into one forward pass, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
import torch.distributed as dist

from slm_ray.pretrain.accounting import peak_memory_bytes
from slm_ray.pretrain.build import Place

_SPARE = 0.8  # of the free memory may be planned with
_LEAST_BYTES = 1 << 20
_CPU_TOKENS = 2048


def divisors(share: int) -> list[int]:
    """The micro-batches that divide a worker's share, largest first."""
    return [size for size in range(share, 0, -1) if share % size == 0]


def default_micro_batch(share: int, sequence_length: int, place: Place) -> int:
    """A worker's whole share on a GPU; on a CPU so much that activations do not fill the memory, and no more.

    More than about 2,048 tokens at once do not run faster on a CPU.
    """
    if place.device.type == "cuda":
        return share
    return next((size for size in divisors(share) if size * sequence_length <= _CPU_TOKENS), 1)


def find_micro_batch(
    try_batch: Callable[[int], None], share: int, place: Place, *, available: Callable[[], int] | None = None
) -> int:
    """The largest micro-batch that fits.

    On a GPU the sizes are tried from the largest down until one does not run out of memory. On a CPU, where running out
    ends the process, one and two sequences are run and the rest is extrapolated.

    Args:
        try_batch: Runs a forward and a backward pass of so many sequences and throws the gradients away.
        share: Sequences of a step for this worker.
        place: This worker.
        available: Bytes of memory that are free; the machine's by default.

    Returns:
        The same on every worker: the least that any of them found.
    """
    if place.device.type == "cuda":
        found = _try_down(try_batch, share)
    else:
        found = _extrapolate(try_batch, share, available or (lambda: psutil.virtual_memory().available))
    if place.world > 1:
        least = torch.tensor([found], device=place.device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        found = int(least.item())
    return next(size for size in divisors(share) if size <= found)


def _try_down(try_batch: Callable[[int], None], share: int) -> int:
    for size in divisors(share):
        try:
            try_batch(size)
            return size
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
    return 1  # its own error will say what to do


def _extrapolate(try_batch: Callable[[int], None], share: int, available: Callable[[], int]) -> int:
    peaks = []
    for size in [size for size in (1, 2) if share % size == 0]:
        try_batch(size)
        peaks.append(peak_memory_bytes())
    per_sequence = max(peaks[-1] - peaks[0], _LEAST_BYTES)
    return max(1, int(_SPARE * available() // per_sequence))
