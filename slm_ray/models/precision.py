"""The type that matrices are multiplied in."""

from __future__ import annotations

import torch


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
