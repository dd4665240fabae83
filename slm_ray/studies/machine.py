"""The device that costs are stated for: how fast it is, how well it is used, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm_ray.config.errors import ConfigError
from slm_ray.config.units import parse_number
from slm_ray.runtime.environment import describe_environment, usable_cpus

# NVIDIA's data sheet: 312 TFLOP/s dense bf16, 80 GB. Model FLOPs utilisation of 0.4 is what small models reach with
# data parallelism; 2 dollars an hour is a usual price on demand. A dry run states them all, and they are options.
GPU_NAME, GPU_FLOPS, GPU_MFU, GPU_PRICE, GPU_MEMORY = "A100 80GB (bf16)", 312e12, 0.4, 2.0, 80e9
# A training step's rate on one core with bf16 matrix instructions (benchmarks/README.md); many times less without.
_CORE_FLOPS = 1.5e11


@dataclass(frozen=True)
class Machine:
    """One device.

    Attributes:
        name: What it is called.
        device_flops: Its FLOP/s at most.
        mfu: The share of them that training reaches.
        price_per_hour: Dollars an hour.
        memory: Bytes of memory; None where that is not known.
        is_gpu: Whether it is a GPU.
    """

    name: str
    device_flops: float
    mfu: float
    price_per_hour: float
    memory: float | None
    is_gpu: bool

    def hours(self, flops: float) -> float:
        """Device-hours of so many FLOPs."""
        return flops / (self.device_flops * self.mfu) / 3600

    def describe(self) -> str:
        """In a line."""
        memory = f", {self.memory / 1e9:.0f} GB" if self.memory else ""
        return (
            f"{self.name}: {self.device_flops:.3g} FLOP/s, of which {self.mfu:.0%} are reached, "
            f"${self.price_per_hour:g} an hour{memory}"
        )


def this_machine() -> Machine:
    """The processors here."""
    cpus = usable_cpus()
    memory = describe_environment()["memory_bytes"]
    return Machine(f"this machine's {cpus} CPUs", _CORE_FLOPS * cpus, 1.0, 0.0, memory, is_gpu=False)


def make_machine(given: Mapping[str, Any], flags: Mapping[str, Any]) -> Machine:
    """The machine of a sweep file's section with the flags over it; this one where neither says anything.

    Raises:
        ConfigError: A value is no number above 0.
    """
    said = dict(given) | {name: value for name, value in flags.items() if value is not None}
    if not said:
        return this_machine()
    problems, numbers = [], {}
    for name in ("device_flops", "mfu", "price_per_hour", "memory"):
        if name in said:
            try:
                numbers[name] = parse_number(str(said[name]))
            except ValueError as error:
                problems.append(f"machine.{name}: {error}")
    problems += [f"machine.{name}: must be above 0, got {value:g}" for name, value in numbers.items()
                 if value <= 0 and name != "price_per_hour"]  # fmt: skip
    if numbers.get("mfu", 0.5) > 1:
        problems.append(f"machine.mfu: must be at most 1, got {numbers['mfu']:g}")
    if problems:
        raise ConfigError("the machine", problems)
    default_name = GPU_NAME if "device_flops" not in numbers else "the device"
    return Machine(
        str(said.get("name", default_name)), numbers.get("device_flops", GPU_FLOPS), numbers.get("mfu", GPU_MFU),
        numbers.get("price_per_hour", GPU_PRICE), numbers.get("memory", GPU_MEMORY), is_gpu=True,
    )  # fmt: skip
