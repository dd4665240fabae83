"""The type that matrices are multiplied in."""

from __future__ import annotations

import torch


def choose_precision(wanted: str, device: str = "cpu") -> str:
    """What ``auto`` stands for: ``bf16`` where it is multiplied natively, else ``fp32``.

    Args:
        wanted: ``auto``, or what is asked for.
        device: ``cpu`` or ``cuda``, where GPUs count as new enough: the one in question may be on another machine.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if device == "cuda" or torch.cpu._is_amx_tile_supported() else "fp32"
