"""Energy that a machine measured itself, by codecarbon; never an estimate from a processor's rating."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

_JOULES_PER_KWH = 3.6e6
_PROCESSORS, _GPUS = "processors (RAPL)", "GPUs (NVML)"


@dataclass(frozen=True)
class Energy:
    """Energy, and how it is known."""

    joules: float | None  # Measured; None where nothing could be
    source: str  # Which counters measured it and what is missing, or ``unknown: …`` with the reason


class EnergyMeter:
    """Measures what a machine's GPUs (NVML) and its processors (RAPL) use: one worker of each machine has one.

    codecarbon falls back to a share of the processor's rated power where there is no counter, and always guesses the
    memory's: both are left out.
    """

    def __init__(self) -> None:
        self._has_rapl = False
        self._tracker: Any = None
        self._missing = "codecarbon is not installed"
        try:
            from codecarbon import OfflineEmissionsTracker
            from codecarbon.core.cpu import is_rapl_available
            from codecarbon.core.gpu import is_nvidia_system
        except ImportError:
            return
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self._missing = "no RAPL counter that may be read, no GPU with NVML"
        self._has_rapl = bool(is_rapl_available())
        if self._has_rapl or is_nvidia_system():
            # Offline: no look-up of where the machine is. The country only matters for emissions, which are not used.
            self._tracker = OfflineEmissionsTracker(
                country_iso_code="USA", save_to_file=False, save_to_api=False, tracking_mode="machine",
                allow_multiple_runs=True, log_level="error",
            )  # fmt: skip

    @property
    def can_measure(self) -> bool:
        """Whether there may be a counter; which there are is known in the end."""
        return self._tracker is not None

    def start(self) -> None:
        """Start measuring; a thread reads the counters every few seconds."""
        if self._tracker is not None:
            self._tracker.start()

    def stop(self) -> Energy:
        """Stop, and give what was used since the start."""
        used: dict[str, float] = {}
        if self._tracker is not None:
            self._tracker.stop()
            data = self._tracker.final_emissions_data
            used = {_PROCESSORS: data.cpu_energy} if self._has_rapl else {}
            used |= {_GPUS: data.gpu_energy} if data.gpu_count else {}
        if not used:
            return Energy(None, f"unknown: {self._missing}")
        wanted = {_PROCESSORS: True, _GPUS: torch.cuda.is_available()}
        missing = [name for name, is_wanted in wanted.items() if is_wanted and name not in used]
        source = f"measured: {', '.join(used)}" + (f"; not counted: {missing[0]}" if missing else "")
        return Energy(_JOULES_PER_KWH * sum(used.values()), source)
