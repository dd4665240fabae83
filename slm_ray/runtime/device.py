"""Which device is computed on."""

from __future__ import annotations

import torch

from slm_ray.config.errors import UserError


def device_of(name: str, address: str | None = None) -> str:
    """``cpu`` or ``cuda``, for ``auto``, ``cpu`` or ``cuda``.

    Args:
        name: What is asked for.
        address: The Ray cluster that computes; a GPU that it is asked for need not be where the command runs.

    Raises:
        UserError: A GPU of this machine is asked for and there is none.
    """
    if address and name == "cuda":
        return name
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device cuda is given, but this machine has no GPU that torch can use: give --device cpu")
    return "cuda" if has_gpu and name != "cpu" else "cpu"
