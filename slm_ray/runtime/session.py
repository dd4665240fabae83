"""Starting Ray, or joining it, quietly and on this machine's own address only."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from slm_ray.config.errors import UserError, first_line
from slm_ray.runtime.commands import EXIT_USER_ERROR
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.shared import sharing
from slm_ray.runtime.storage import storage_of

# Read by Ray when it is imported and when its processes start.
_QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is to end the command, not only what Tune is at
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call without a cluster is a fault; Ray would start one, on all interfaces
}
# glibc gives large blocks back to the system and faults them in again at every layer of every candidate, unless told to
# keep them; read by workers when they start.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# Of a cluster of this machine alone: it is not taken away, so no process need watch for that (one per training, which
# takes seconds to start).
_ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_LOOK_EVERY_SECONDS = 0.5
# Of silence before a cluster that was joined counts as lost; Ray itself waits 60 seconds and then kills the process.
_PATIENCE_SECONDS = 20.0
_HEAD_PROCESSES = ("gcs_server", "raylet")


def default_workers(threads: int) -> int:
    """Trials at once on this machine: its usable CPUs over the threads of a trial."""
    return max(1, usable_cpus() // threads)


@contextlib.contextmanager
def ray_session(address: str | None, num_cpus: int, storage: str | None = None) -> Iterator[None]:
    """Have Ray running inside the block.

    ``address``: A cluster to join; None starts one on this machine that listens on localhost only, without a dashboard.
    """
    if address and address.startswith("ray://"):
        raise UserError(
            f"--address {address} is Ray's client, which slm_ray does not use: send the command to the cluster with "
            "`ray job submit --working-dir . -- slm-ray …` and --address auto (docs/cluster.md)"
        )
    for name, value in (_QUIET | _KEEP_MEMORY | ({} if address else _ALONE)).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    with contextlib.ExitStack() as stack:
        workers_have = stack.enter_context(sharing(storage_of(storage))) if address else {}
        try:
            _start(ray, address, num_cpus, workers_have)
        except Exception as error:
            # Ray raises many types here (timeouts, connection errors, its own); each ends in one sentence.
            where, fix = (
                (f"the Ray cluster at {address} could not be joined", "check the address and that the cluster is up")
                if address
                else ("Ray could not start on this machine", "see whether memory, /tmp and /dev/shm have room")
            )
            raise UserError(f"{where} ({first_line(error, 160)}): {fix}") from error
        stack.callback(ray.shutdown)
        ended = threading.Event()
        stack.callback(ended.set)
        is_alive = _head_answers(ray) if address else _head_runs()
        threading.Thread(target=_watch_head, args=(is_alive, ended), daemon=True, name="ray-head-watch").start()
        yield


def _start(ray: Any, address: str | None, num_cpus: int, workers_have: dict[str, str]) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if workers_have:
        common["runtime_env"] = {"env_vars": workers_have}
    if address:
        if place := split_address(address):  # Ray itself goes on trying for ten minutes and more
            check_port(*place, seconds=10)
        ray.init(address=address, **common)
        return
    with on_localhost():
        ray.init(
            address="local", num_cpus=num_cpus, include_dashboard=False, object_store_memory=256 * 1024**2, **common
        )


# --- Addresses --------------------------------------------------------------------------------------------------------


def split_address(address: str) -> tuple[str, int] | None:
    """Host (an IPv6 one without its brackets) and port; None where an address is no such pair."""
    host, _, port = address.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None


def check_port(host: str, port: int, seconds: float) -> None:
    """Make sure that somebody takes connections there.

    Raises:
        OSError: Nobody does within these seconds.
    """
    socket.create_connection((host, port), timeout=seconds).close()


@contextlib.contextmanager
def on_localhost() -> Iterator[None]:
    """Inside the block, a node that is started or joins is known by localhost, and all its ports are bound there.

    Ray reads this switch, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, when it is first imported, which may be long past; so what
    it has read is changed, the one thing of Ray's insides that slm_ray touches.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


# --- A head that dies -------------------------------------------------------------------------------------------------


def _head_runs() -> Callable[[], bool]:
    """Whether the head's processes that this one started still run."""
    head = [child for child in psutil.Process().children() if child.name() in _HEAD_PROCESSES]
    return lambda: all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in head)


def _head_answers(ray: Any) -> Callable[[], bool]:
    """Whether the head of a cluster that was joined has taken a connection in the last seconds."""
    place = split_address(ray.get_runtime_context().gcs_address)
    last = time.monotonic()

    def answers() -> bool:
        nonlocal last
        with contextlib.suppress(OSError):
            if place:
                check_port(*place, seconds=5)
            last = time.monotonic()
        return time.monotonic() - last < _PATIENCE_SECONDS

    return answers


def _watch_head(is_alive: Callable[[], bool], ended: threading.Event) -> None:
    """End the process in one sentence once Ray's head is gone; what waits for it waits for ever, or is aborted."""
    while not ended.wait(_LOOK_EVERY_SECONDS):
        with contextlib.suppress(psutil.Error):
            if is_alive() or ended.is_set():
                continue
        if ended.is_set():
            return
        print("\nerror: Ray's head has died: what was finished is kept; continue with --resume", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_USER_ERROR)
