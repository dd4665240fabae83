"""The types that matrices are multiplied in and that weights are saved in."""

from __future__ import annotations

from functools import lru_cache

import torch

from slm_ray.runtime.hardware import matmul_flops_per_second

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIDE = 512  # of the matrices that are timed: a processor's own rates, whatever model is computed
_WORTH = 1.25  # how many times as fast products in bf16 have to be: the rest of a pass gains nothing from them


def dtype_name(dtype: torch.dtype | None) -> str:
    """``fp32``, ``bf16`` or ``fp16``; none, and any other type, which no weights are saved in, count as ``fp32``."""
    return next((name for name, known in DTYPES.items() if known == dtype), "fp32")


def export_dtype(wanted: str, own: str) -> str:
    """The type that weights are saved in."""
    return own if wanted == "auto" else wanted


def saved_bytes(num_params: int, dtype: str) -> int:
    """Bytes of so many weights in a file."""
    return num_params * DTYPES[dtype].itemsize


def choose_precision(wanted: str, device: str = "cpu") -> str:
    """The type to multiply in: ``auto`` is ``bf16`` on GPUs and processors that have it, else ``fp32``.

    GPUs before Ampere (V100, T4) emulate bf16: there it is ``fp16``.
    """
    if wanted != "auto":
        return wanted
    if device == "cuda":  # a cluster's GPUs, which this machine does not see, are taken to be newer
        emulates = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "fp16" if emulates else "bf16"
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if found.get("amx_tile") or found.get("avx512_bf16") else "fp32"


@lru_cache(maxsize=1)
def bf16_gain() -> float:
    """How many times as fast as in fp32 this processor multiplies in bf16; takes about a second, once per process."""
    device = torch.device("cpu")
    rates = [matmul_flops_per_second(device, dtype, _SIDE) for dtype in (torch.bfloat16, torch.float32)]
    return rates[0] / rates[1]


def measure_precision(wanted: str, device: str = "cpu") -> str:
    """As :func:`choose_precision`, but what a processor gains from bf16 is measured rather than read off.

    For one process that decides for all others: two machines, or one that is busy, may find different things.
    """
    if wanted != "auto" or device == "cuda":
        return choose_precision(wanted, device)
    return "bf16" if bf16_gain() >= _WORTH else "fp32"
