"""What a run computes and uses: FLOPs, processor and memory."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from slm_ray.architecture.cost import flops_per_token
from slm_ray.architecture.shape import Architecture


def training_flops(
    architecture: Architecture, sequence_length: int, num_tokens: int, *, activation_checkpointing: bool = False
) -> int:
    """Matrix-multiplication FLOPs of training on tokens.

    The forward pass as in :func:`slm_ray.architecture.cost.flops_per_token`, and twice as much for the backward pass
    (a gradient for the input and one for the weights of every product). With activation checkpointing the layers'
    forward pass runs a second time, the output head's does not. The optimiser's own work is not counted.

    Args:
        architecture: The model that is trained.
        sequence_length: Tokens per sequence.
        num_tokens: Tokens trained on.
        activation_checkpointing: Whether activations are computed again in the backward pass.
    """
    forward = flops_per_token(architecture, sequence_length)
    head = 2 * architecture.structure.vocab_size * architecture.hidden_size
    again = forward - head if activation_checkpointing else 0
    return (3 * forward + again) * num_tokens


def forward_flops(architecture: Architecture, sequence_length: int, num_tokens: int) -> int:
    """Matrix-multiplication FLOPs of a forward pass over tokens: a teacher in the loop, a capture, an evaluation."""
    return flops_per_token(architecture, sequence_length) * num_tokens


def capture_share(capture_flops: float, captured_tokens: int, tokens_read: int) -> float:
    """The part of a capture's FLOPs that was for the tokens read so far.

    Every token is captured once: reading a store again in the next epoch adds nothing.

    Args:
        capture_flops: Of the whole store.
        captured_tokens: Tokens in the store.
        tokens_read: Tokens trained on from it so far.
    """
    return capture_flops * min(1.0, tokens_read / captured_tokens)


def peak_memory_bytes() -> int:
    """The most memory this process has held at once (resident set)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Usage:
    """What a process and its children use.

    Attributes:
        cpu_percent: Mean since the sample before; 100 is one core.
        gpu_percent: Part of the last moment in which the GPU ran anything; None without a GPU that can say.
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
        self._last = (time.monotonic(), self._cpu_seconds())

    def _cpu_seconds(self) -> float:
        """Of the process and all below it, those that have ended included, so that it never falls."""
        total = 0.0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def sample(self) -> Usage:
        """Use since the last sample (the first: since the sampler was made)."""
        now = (time.monotonic(), self._cpu_seconds())
        seconds, cpu_seconds = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        cuda = torch.cuda.is_available()
        return Usage(
            cpu_percent=100 * max(0.0, cpu_seconds) / seconds if seconds > 0 else 0.0,
            gpu_percent=_gpu_percent() if cuda else None,
            memory_bytes=peak_memory_bytes(),
            gpu_memory_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        )


def _gpu_percent() -> float | None:
    try:
        return float(torch.cuda.utilization())
    except (ModuleNotFoundError, RuntimeError):  # no NVML bindings, or a driver that does not answer
        return None
