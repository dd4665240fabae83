"""Memory that a process has held at most, since it began or since a moment of one's choice."""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM back to what is resident now
_POLL_SECONDS = 0.001
# How the peak is known; the record says which.
KERNEL, POLLED, CUDA = "kernel high-water mark", "polled every millisecond", "torch.cuda.max_memory_allocated"


def peak_memory_bytes() -> int:
    """The most memory this process has held at once (resident set)."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The memory this process holds now (resident set)."""
    return int(psutil.Process().memory_info().rss)


def _reset_kernel_peak() -> bool:
    """Set the kernel's high-water mark back to now; False where it cannot be (not Linux, or not allowed)."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    # Sandboxed kernels take the write and do nothing: the mark must be near what is held.
    return peak_memory_bytes() <= resident_bytes() + (1 << 20)


class PeakMemory:
    """The most memory held inside a ``with`` block, above what was held as it began.

    On a GPU: what torch has allocated there. On a processor: the kernel's high-water mark of resident memory, reset as
    the block begins; where it cannot be reset, a thread that looks every millisecond.

    Attributes:
        bytes: The peak above the beginning; known after the block.
        source: How it was measured.
    """

    def __init__(self, device: torch.device) -> None:
        """Of a device: the processor, or a GPU."""
        self._device = device
        self.bytes, self.source = 0, CUDA if device.type == "cuda" else KERNEL
        self._start = 0
        self._poll: _Poll | None = None

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        elif _reset_kernel_peak():
            self._start = resident_bytes()
        else:
            self.source, self._start = POLLED, resident_bytes()
            self._poll = _Poll(resident_bytes)
            self._poll.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = self._poll.stop() if self._poll else peak_memory_bytes()
        self.bytes = max(0, peak - self._start)


class _Poll(threading.Thread):
    """Remembers the largest of values looked up again and again."""

    def __init__(self, look: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._look, self._over, self._most = look, threading.Event(), 0

    def run(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            self._most = max(self._most, self._look())

    def stop(self) -> int:
        self._over.set()
        self.join()
        return max(self._most, self._look())
