"""Which device is computed on."""

from __future__ import annotations

import torch

from slm_ray.core.errors import UserError


def device_of(name: str) -> str:
    """``cpu`` or ``cuda``, for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: A GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device cuda is given, but this machine has no GPU that torch can use: give --device cpu")
    return "cuda" if has_gpu and name != "cpu" else "cpu"
