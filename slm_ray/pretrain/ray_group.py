"""The process group of Ray Train's workers, which listens on no other address than Ray's own.

torch's store of a group listens on all interfaces, and gloo on whatever the machine's name resolves to: on many that is
127.0.0.1, or Debian's 127.0.1.1, where no other machine is found. Here both use the address that Ray knows the machine
by, which is localhost where Ray was started for one command.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist
from ray.train.torch.config import TorchConfig, _set_torch_distributed_env_vars, _TorchBackend

_MOST_WAITING = 4096  # connections that the store has not taken yet
_stores: list[dist.TCPStore] = []  # of this process, for as long as its group lasts


def name_interface() -> None:
    """Tell gloo the interface that has Ray's address of this machine, unless the user has named one."""
    import ray

    address = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            return


def open_store(world: int, timeout: timedelta) -> tuple[str, int]:
    """Open the group's store in the worker of rank 0.

    Args:
        world: Workers of the group.
        timeout: How long they wait for each other.

    Returns:
        The address and port that it listens on.
    """
    import ray

    address = ray.util.get_node_ip_address()
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listening.bind((address, 0))
    listening.listen(_MOST_WAITING)
    port = int(listening.getsockname()[1])
    _stores.append(
        dist.TCPStore(
            address, port, world, is_master=True, timeout=timeout, wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
    )  # fmt: skip
    return address, port


def join_group(backend: str, number: int, world: int, address: str, port: int, timeout: timedelta) -> None:
    """Have a worker join the group."""
    os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port)})  # which DeepSpeed wants to see
    if backend == "nccl":
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a lost worker ends the others, as in Ray Train
    store = _stores[-1] if number == 0 else dist.TCPStore(address, port, world, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=timeout)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Form the group of all workers."""
        import ray

        world, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        worker_group.execute(name_interface)
        address, port = worker_group.execute_single(0, open_store, world=world, timeout=timeout)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get([
            worker_group.execute_single_async(
                rank, join_group, backend=backend_config.backend, number=rank, world=world, address=address, port=port,
                timeout=timeout,
            )
            for rank in range(world)
        ])  # fmt: skip


class GroupConfig(TorchConfig):
    """Ray Train's own, with a group that keeps to Ray's address; ``backend`` has to be given."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What forms the group."""
        return _Backend
