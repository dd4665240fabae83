"""Workers without Ray: this process alone, or one of torchrun's."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from slm_ray.config.errors import UserError
from slm_ray.pretrain.build import Place


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """A worker's device.

    Raises:
        UserError: A GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda is given, but torch finds no GPU: give --device cpu, or install a CUDA build")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def local_group(device: str) -> Iterator[Place]:
    """Have a process group inside the block: torchrun's where its variables are set, else one of this process alone.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(alone | {"MASTER_PORT": str(_free_port())})
        added = [*alone, "MASTER_PORT"]
    else:
        added = []
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    # Alone there is nobody to listen to: the variables are for DeepSpeed, and no port is opened.
    alone_in_it: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if added else {}
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", **alone_in_it)
    try:
        yield Place(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()
        for name in added:
            os.environ.pop(name, None)
