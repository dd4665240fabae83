"""The device that is computed on: which, how fast, how much memory it took, and who else was busy there."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
import torch

from slm_ray.config.errors import UserError


def device_of(name: str, address: str | None = None) -> str:
    """``cpu`` or ``cuda``, for ``auto``, ``cpu`` or ``cuda``."""
    if address and name == "cuda":
        return name
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device cuda is given, but this machine has no GPU that torch can use: give --device cpu")
    return "cuda" if has_gpu and name != "cpu" else "cpu"


# --- Time -------------------------------------------------------------------------------------------------------------

_FEWEST_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on one figure."""

    warm_up: int = 2  # Runs that are not counted
    least_runs: int = 10  # Runs that are counted, and …
    least_seconds: float = 1.0  # … the time that they take together, at least; the longer of the two
    most_seconds: float = 6.0  # After that long, three runs are enough

    def is_enough(self, runs: int, seconds: float) -> bool:
        """Whether so many runs that took so long are enough."""
        wanted = runs >= self.least_runs and seconds >= self.least_seconds
        return wanted or (seconds >= self.most_seconds and runs >= _FEWEST_RUNS)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one run, including what it queued on the device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def time_runs(work: Callable[[], object], device: torch.device, effort: Effort) -> list[float]:
    """Wall times in seconds of repeated runs of the same work, after a warm-up."""
    spent = 0.0
    for _ in range(effort.warm_up):
        if spent < effort.most_seconds / 2:
            spent += seconds_of(work, device)
    times: list[float] = []
    while not effort.is_enough(len(times), sum(times)):
        times.append(seconds_of(work, device))
    return times


def distribution_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile (interpolated between runs), least and most, in milliseconds."""
    values = 1e3 * np.asarray(seconds)
    median, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return {"median": median, "p90": p90, "p99": p99, "min": float(values.min()), "max": float(values.max())}


# --- Speed ------------------------------------------------------------------------------------------------------------

# Large enough for full speed: on a processor all of it stays in the last-level cache.
_MATMUL_SIZES = {"cpu": 1024, "cuda": 8192}
_MATMUL_EFFORT = Effort(warm_up=2, least_runs=10, least_seconds=0.3, most_seconds=2.0)


@torch.no_grad()
def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of the fastest of several products of two square matrices: a floor of what the device can do.

    ``size``: Their side; by default what suits the device.
    """
    side = size or _MATMUL_SIZES.get(device.type, 1024)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(left)
    times = time_runs(lambda: torch.mm(left, right, out=out), device, _MATMUL_EFFORT)
    return 2 * side**3 / min(times)


# Peak dense matrix-multiplication FLOP/s by tensor type, from NVIDIA's data sheets (RTX 3090, 4090 and 50: the GA102,
# AD102 and Blackwell white papers). Dense: half of the figures "with sparsity". "fp32" is without tensor cores, "tf32"
# with them; fp16 and bf16 sum in fp32. The names are those of torch.cuda.get_device_name without the maker's words in
# front, matched whole: a laptop's or a cut-up (MIG) device of a like name is another one.
_PEAKS: dict[str, dict[str, float]] = {
    r"A100(-SXM4|-PCIE| )-?\d+GB( PCIe)?": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    r"H100 80GB HBM3|H200": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    r"H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51e12},
    r"H100 NVL|H200 NVL": {"bf16": 835e12, "fp16": 835e12, "tf32": 417e12, "fp32": 60e12},
    r"B200": {"bf16": 2250e12, "fp16": 2250e12, "tf32": 1100e12, "fp32": 75e12},
    r"A10G": {"bf16": 70e12, "fp16": 70e12, "tf32": 35e12, "fp32": 35e12},
    r"L40S": {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12},
    r"L4": {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12},
    r"T4": {"fp16": 65e12, "fp32": 8.1e12},
    r"V100-PCIE-\d+GB": {"fp16": 112e12, "fp32": 14e12},
    r"V100-SXM2-\d+GB": {"fp16": 125e12, "fp32": 15.7e12},
    r"RTX 5090": {"bf16": 209.5e12, "fp16": 209.5e12, "tf32": 104.8e12, "fp32": 104.8e12},
    r"RTX 5080": {"bf16": 112.6e12, "fp16": 112.6e12, "tf32": 56.3e12, "fp32": 56.3e12},
    r"RTX 5070 Ti": {"bf16": 87.9e12, "fp16": 87.9e12, "tf32": 43.9e12, "fp32": 43.9e12},
    r"RTX 4090": {"bf16": 165.2e12, "fp16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12},
    r"RTX 3090": {"bf16": 71e12, "fp16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12},
}
_MAKERS_WORDS = re.compile(r"^(NVIDIA |Tesla |GeForce )+")


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak dense matrix-multiplication FLOP/s of a GPU.

    Returns FLOP/s, or None where the device or its speed in that type is not known.
    """
    name = _MAKERS_WORDS.sub("", device_name)
    return next((peaks.get(dtype) for pattern, peaks in _PEAKS.items() if re.fullmatch(pattern, name)), None)


def model_flops_utilization(
    flops: float, seconds: float, device_name: str, dtype: str, num_devices: int
) -> float | None:
    """MFU (PaLM, arXiv 2204.02311, appendix B): a run's own FLOPs over what its devices could have done in that time.

    ``flops``: The model's own training FLOPs, without recomputation for activation checkpointing. Returns between 0 and
    1, or None where the peak is not known.
    """
    peak = peak_flops(device_name, dtype)
    return flops / (seconds * peak * num_devices) if peak and seconds > 0 else None


# --- Memory -----------------------------------------------------------------------------------------------------------

_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM back to what is resident now
_POLL_SECONDS = 0.001
# How the peak is known; the record says which.
KERNEL, POLLED, CUDA = "kernel high-water mark", "polled every millisecond", "torch.cuda.max_memory_allocated"


def peak_memory_bytes() -> int:
    """The most memory this process has held at once (resident set)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The memory this process holds now (resident set)."""
    return int(psutil.Process().memory_info().rss)


def reset_kernel_peak() -> bool:
    """Set the kernel's high-water mark back to now; False where it cannot be (not Linux, or not allowed)."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
        # Sandboxed kernels take the write and do nothing: the mark must be near what is held.
        return peak_memory_bytes() <= resident_bytes() + (1 << 20)
    return False


class PeakMemory:
    """The most memory held inside a ``with`` block, above what was held as it began.

    On a GPU: what torch has allocated there. On a processor: the kernel's high-water mark of resident memory, reset as
    the block begins; where it cannot be reset, a thread that looks every millisecond.
    ``bytes`` and ``source``, which says how it was measured, are known after the block.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._start = device, 0
        self.bytes, self.source = 0, CUDA if device.type == "cuda" else KERNEL
        self._most, self._over = 0, threading.Event()
        self._poll = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
            return self
        if not reset_kernel_peak():
            self.source = POLLED
            self._poll.start()
        self._start = resident_bytes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
        elif self.source == KERNEL:
            peak = peak_memory_bytes()
        else:
            self._over.set()
            self._poll.join()
            peak = max(self._most, resident_bytes())
        self.bytes = max(0, peak - self._start)

    def _look(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            self._most = max(self._most, resident_bytes())
