"""How many sequences fit into one forward pass, found by trying."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil
import torch
import torch.distributed as dist

from slm_ray.pretrain.build import Place
from slm_ray.runtime.hardware import peak_memory_bytes

# Of every parameter, in training: its gradient, two moments, and what an engine copies.
STATE_BYTES = 16
_SPARE = 0.8  # of the free memory may be planned with
_LEAST_BYTES = 1 << 20  # a smaller rise of the peak is no sign of what a batch takes
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
    try_batch: Callable[[int], None],
    share: int,
    place: Place,
    *,
    reserve: int = 0,
    available: Callable[[], int] | None = None,
    memory: Callable[[], tuple[int, int]] | None = None,
) -> int:
    """The largest micro-batch that fits.

    On a GPU the sizes are tried from the largest down until one does not run out of memory. On a CPU, where running out
    ends the process, they are doubled as long as the next one is sure to fit, and the rest is extrapolated.

    Args:
        try_batch: Runs a forward and a backward pass of so many sequences and throws the gradients away.
        share: Sequences of a step for this worker.
        place: This worker.
        reserve: Bytes that training will need besides.
        available: Bytes of memory that are free for this worker; by default its share of the machine's.
        memory: Bytes of memory that this process holds, and the most that it has held so far; by default its own.

    Returns:
        The same on every worker: the least that any of them found.
    """
    if place.device.type == "cuda":
        found = _try_down(try_batch, share, reserve)
    else:
        found = _double(try_batch, share, int(_SPARE * (available or _free_memory)()) - reserve, memory or _own_memory)
    if place.world > 1:
        least = torch.tensor([found], device=place.device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        found = int(least.item())
    return next(size for size in divisors(share) if size <= found)


def _free_memory() -> int:
    """The machine's free memory, shared with the other workers on it (Ray and torchrun tell how many there are)."""
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _own_memory() -> tuple[int, int]:
    return int(psutil.Process().memory_info().rss), peak_memory_bytes()


def _try_down(try_batch: Callable[[int], None], share: int, reserve: int) -> int:
    for size in divisors(share):
        if _fits(try_batch, size, reserve):
            return size
        torch.cuda.empty_cache()  # out here, where the error holds nothing any more
    return 1  # its own error will say what to do


def _fits(try_batch: Callable[[int], None], size: int, reserve: int) -> bool:
    try:
        held = torch.empty(reserve, dtype=torch.uint8, device="cuda") if reserve else None
        try_batch(size)
        del held
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def _double(try_batch: Callable[[int], None], share: int, spare: int, memory: Callable[[], tuple[int, int]]) -> int:
    """Sizes 1, 2, 4 … until the peak rose twice in a row: before that, it may be one of loading the model."""
    held, peak = memory()
    tried, peaks = [0], [peak]
    for size in [*(1 << power for power in range((share - 1).bit_length())), share]:
        if len(tried) > 1 and 2 * (peaks[-1] - held) > spare:
            break  # the last size took no more than this, and twice as many take no more than twice that
        try_batch(size)
        tried.append(size)
        peaks.append(memory()[1])
        rises = [after - before for before, after in zip(peaks[-3:], peaks[-2:], strict=False)]
        if len(rises) == 2 and min(rises) >= _LEAST_BYTES and tried[-1] > tried[-2]:
            return max(1, int(spare // (rises[-1] / (tried[-1] - tried[-2]))))
    return max(1, tried[-1])
