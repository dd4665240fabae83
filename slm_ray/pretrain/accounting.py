"""What a run computes and uses: FLOPs, processor time, memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch

from slm_ray.runtime.hardware import peak_memory_bytes

# Looking for child processes reads the whole process table.
_CHILDREN_SECONDS = 10.0


def training_flops(forward_flops: float, *, activation_checkpointing: bool = False) -> float:
    """FLOPs of training on what takes a forward pass so many.

    The backward pass counts twice the forward pass: every product has a gradient for its input and one for its weights.
    Activation checkpointing adds a second forward pass (a little less in truth: the output head is not run again). The
    optimiser's own work and evaluations are not counted.

    Args:
        forward_flops: Matrix multiplications of the forward pass; see :func:`slm_ray.records.cost.flops_per_token`.
        activation_checkpointing: Whether activations are computed again in the backward pass.
    """
    return forward_flops * (4 if activation_checkpointing else 3)


@dataclass(frozen=True)
class Usage:
    """What a process and its children use.

    Attributes:
        cpu_percent: Mean since the sample before; 100 is one core.
        gpu_percent: Share of the last moments in which the GPU ran anything; None without a GPU that can say.
        memory_bytes: Most resident memory of this process so far.
        gpu_memory_bytes: Most memory that torch has held on the GPU so far; None without one.
    """

    cpu_percent: float
    gpu_percent: float | None
    memory_bytes: int
    gpu_memory_bytes: int | None


class UsageSampler:
    """Samples what this process and its children use."""

    def __init__(self) -> None:
        """Start counting."""
        self._process = psutil.Process()
        self._children: list[psutil.Process] = []
        self._looked = -_CHILDREN_SECONDS
        self._last = (time.monotonic(), self._cpu_seconds(time.monotonic()))

    def _cpu_seconds(self, now: float) -> float:
        """Of the process and all below it, those that have ended included, so that it never falls."""
        if now - self._looked >= _CHILDREN_SECONDS:
            self._children, self._looked = self._process.children(recursive=True), now
        total = 0.0
        for process in [self._process, *self._children]:
            try:
                times = process.cpu_times()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def sample(self) -> Usage:
        """Use since the last sample (the first: since the sampler was made)."""
        now = time.monotonic()
        last, self._last = self._last, (now, self._cpu_seconds(now))
        seconds, cpu_seconds = self._last[0] - last[0], max(0.0, self._last[1] - last[1])
        cuda = torch.cuda.is_available()
        return Usage(
            cpu_percent=round(100 * cpu_seconds / seconds, 1) if seconds > 0 else 0.0,
            gpu_percent=_gpu_percent() if cuda else None,
            memory_bytes=peak_memory_bytes(),
            gpu_memory_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        )


def _gpu_percent() -> float | None:
    try:
        return float(torch.cuda.utilization())
    except (ImportError, RuntimeError):  # no NVML bindings, or a driver that does not answer
        return None
