"""The process group of a training's workers: Ray Train's, torchrun's, or this process alone.

torch's store of a group listens on all interfaces, and gloo on whatever the machine's name resolves to: on many that is
127.0.0.1, or Debian's 127.0.1.1, where no other machine is found. On Ray both use the address that Ray knows the
machine by, which is localhost where Ray was started for one command.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

from slm_ray.config.errors import UserError
from slm_ray.pretrain.engine import Place

_MOST_WAITING = 4096  # connections that the store has not taken yet
_TIMEOUT = timedelta(seconds=1800)  # as Ray Train's own


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """A worker's device."""
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
    """Have a process group inside the block: torchrun's where its variables are set, else one of this process alone."""
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


def name_interface() -> None:
    """Tell gloo the interface that has Ray's address of this machine, unless the user has named one."""
    import ray

    address = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            return


@contextlib.contextmanager
def ray_group() -> Iterator[Place]:
    """Have the process group of all of Ray Train's workers inside the block; each of them enters it."""
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero

    context, device = train.get_context(), train.torch.get_device()
    rank, world = context.get_world_rank(), context.get_world_size()
    name_interface()
    store, told = _open_store(world) if rank == 0 else (None, None)
    address, port = broadcast_from_rank_zero(told)
    # DeepSpeed wants to see what torchrun would set.
    os.environ |= {
        "MASTER_ADDR": address, "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(context.get_local_rank()), "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()), "ACCELERATE_TORCH_DEVICE": str(device),
    }  # fmt: skip
    if device.type == "cuda":
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a lost worker ends the others
    store = store or dist.TCPStore(address, port, world, is_master=False, timeout=_TIMEOUT)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    yield Place(rank, world, device)
    dist.destroy_process_group()  # not after an error: the others may be gone, and Ray Train ends this process


def _open_store(world: int) -> tuple[dist.TCPStore, tuple[str, int]]:
    """The group's store, with the address and the port it listens on."""
    import ray

    address = ray.util.get_node_ip_address()
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listening.bind((address, 0))
    listening.listen(_MOST_WAITING)
    port = int(listening.getsockname()[1])
    store = dist.TCPStore(
        address, port, world, is_master=True, timeout=_TIMEOUT, wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )  # fmt: skip
    return store, (address, port)
