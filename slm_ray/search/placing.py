"""What a process that measures candidates asks Ray for."""

from __future__ import annotations

from typing import Any

# Of a GPU: while one process prepares its next candidate, another one's runs.
GPU_SHARE = 0.5


def resources(device: str, threads: int) -> dict[str, float]:
    """CPUs and GPUs of one process, by Tune's names.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: Its threads.
    """
    return {"cpu": float(threads)} | ({"gpu": GPU_SHARE} if device == "cuda" else {})


def actor_options(device: str, threads: int) -> dict[str, Any]:
    """The same for an actor, as options of ``ray.remote``."""
    asked: dict[str, Any] = {"num_cpus": threads}
    return asked | ({"num_gpus": GPU_SHARE} if device == "cuda" else {})


def room(device: str, threads: int, there: dict[str, float]) -> int:
    """How many such processes a cluster has room for.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: Threads of each.
        there: The cluster's resources, by Ray's names.
    """
    count = int(there.get("CPU", 0) // threads)
    return min(count, int(there.get("GPU", 0) / GPU_SHARE)) if device == "cuda" else count
