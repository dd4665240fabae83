"""The type that matrices are multiplied in."""

from __future__ import annotations

from functools import lru_cache

import torch

from slm_ray.runtime.hardware import matmul_flops_per_second

_SIDE = 512  # of the matrices that are timed: a processor's own rates, whatever model is computed
_WORTH = 1.25  # how many times as fast products in bf16 have to be: the rest of a pass gains nothing from them


def choose_precision(wanted: str, device: str = "cpu") -> str:
    """What ``auto`` stands for: ``bf16`` where it is multiplied natively (AMX, or AVX-512 with BF16), else ``fp32``.

    Args:
        wanted: ``auto``, or what is asked for.
        device: ``cpu`` or ``cuda``, where GPUs count as new enough: the one in question may be on another machine.
    """
    if wanted != "auto":
        return wanted
    is_native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device == "cuda" or is_native else "fp32"


@lru_cache(maxsize=1)
def bf16_gain() -> float:
    """How many times as fast as in fp32 this processor multiplies in bf16; takes about a second, once per process."""
    device = torch.device("cpu")
    rates = [matmul_flops_per_second(device, dtype, _SIDE) for dtype in (torch.bfloat16, torch.float32)]
    return rates[0] / rates[1]


def measure_precision(wanted: str, device: str = "cpu") -> str:
    """What ``auto`` stands for, by what products take on the processor rather than by what it says it can.

    For one process that decides for all others: two machines, or one that is busy, may find different things.

    Args:
        wanted: ``auto``, or what is asked for.
        device: ``cpu`` or ``cuda``, where bf16 is taken: the GPU in question may be on another machine.
    """
    if wanted != "auto" or device == "cuda":
        return choose_precision(wanted, device)
    return "bf16" if bf16_gain() >= _WORTH else "fp32"
