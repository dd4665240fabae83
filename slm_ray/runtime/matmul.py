"""The matrix-multiplication rate that a machine reaches, as a floor of what it could do."""

from __future__ import annotations

import itertools

import torch

from slm_ray.runtime.timing import Effort, time_runs

# Large enough for full speed: on a processor all of it stays in the last-level cache.
_SIZES = {"cpu": 1024, "cuda": 8192}
_EFFORT = Effort(warm_up=2, least_runs=10, least_seconds=0.3, most_seconds=2.0)


@torch.no_grad()
def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of the fastest of several products of two square matrices.

    Args:
        device: Where it runs, with the threads that torch is set to.
        dtype: Of the matrices.
        size: Their side; by default what suits the device.
    """
    side = size or _SIZES.get(device.type, 1024)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(left)
    times = _event_times(left, right, out) if device.type == "cuda" else time_runs(
        lambda: torch.mm(left, right, out=out), device, _EFFORT
    )  # fmt: skip
    return 2 * side**3 / min(times)


def _event_times(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> list[float]:
    """Seconds between events on the GPU itself: what Python and the launch take is not part of its speed."""
    for _ in range(_EFFORT.warm_up):
        torch.mm(left, right, out=out)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_EFFORT.least_runs + 1)]
    marks[0].record()
    for mark in marks[1:]:
        torch.mm(left, right, out=out)
        mark.record()
    torch.cuda.synchronize(left.device)
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(marks)]
