"""Starting Ray, or joining it, quietly and on this machine's own address only."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.config.units import format_bytes
from slm_ray.runtime.addresses import knock, split_address
from slm_ray.runtime.commands import EXIT_USER_ERROR
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.home import open_home, sent_files
from slm_ray.runtime.localhost import is_on_localhost, on_localhost
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


def default_workers(threads: int) -> int:
    """Trials at once on this machine: its usable CPUs over the threads of a trial."""
    return max(1, usable_cpus() // threads)


@contextlib.contextmanager
def ray_session(address: str | None, num_cpus: int, storage: str | None = None) -> Iterator[None]:
    """Have Ray running inside the block.

    Args:
        address: A cluster to join; None starts one on this machine that listens on localhost only, without a dashboard.
        num_cpus: CPUs of a cluster started here.
        storage: As ``--storage`` has it; machines of a cluster get through it what they do not see themselves.

    Raises:
        UserError: Ray cannot start, or the cluster cannot be reached.
    """
    if address and address.startswith("ray://"):
        raise UserError(
            f"--address {address} is Ray's client, which slm_ray does not use: send the command to the cluster with "
            "`ray job submit --working-dir . -- slm-ray …` and --address auto (docs/cluster.md)"
        )
    for name, value in (_QUIET | _KEEP_MEMORY | ({} if address else _ALONE)).items():
        os.environ.setdefault(name, value)
    import ray

    started_here = not ray.is_initialized()
    shares = contextlib.ExitStack()
    if started_here:
        workers_have = shares.enter_context(sharing(storage_of(storage))) if address else {}
        try:
            _start(ray, address, num_cpus, workers_have)
        except Exception as error:
            # Ray raises many types here (timeouts, connection errors, its own); each ends in one sentence.
            where = (
                f"the Ray cluster at {address} could not be joined"
                if address
                else "Ray could not start on this machine"
            )
            fix = (
                "check the address and that the cluster is up"
                if address
                else "see whether memory, /tmp and /dev/shm have room"
            )
            raise UserError(f"{where} ({first_line(error, 160)}): {fix}") from error
    ended = threading.Event()
    home = open_home() if started_here and address else None
    if started_here:
        is_alive = _head_answers(ray) if address else _head_runs(ray)
        threading.Thread(target=_watch_head, args=(is_alive, ended), daemon=True, name="ray-head-watch").start()
    try:
        yield
    finally:
        ended.set()
        if home is not None:
            _say_sent(home)
        shares.close()
        if started_here:
            ray.shutdown()


def _say_sent(home: Any) -> None:
    """One line for every folder that other machines were sent, in the end."""
    sent = defaultdict[str, list[int]](list)
    with contextlib.suppress(Exception):  # a cluster that is gone has nothing to say, and the run's own error has
        for what, _, num_bytes in sent_files(home):
            sent[what].append(num_bytes)
    for what, each in sent.items():
        machines = "1 machine" if len(each) == 1 else f"{len(each)} machines, once each"
        print(f"sent {what} ({format_bytes(max(each))}) to {machines}", file=sys.stderr)


def _head_runs(ray: Any) -> Callable[[], bool]:
    """Whether the head's processes that this one started still run."""
    node = ray._private.worker._global_node
    return lambda: not {"gcs_server", "raylet"} & {str(kind) for kind, _ in node.dead_processes()}


def _head_answers(ray: Any) -> Callable[[], bool]:
    """Whether the head of a cluster that was joined has taken a connection in the last seconds."""
    place = split_address(ray.get_runtime_context().gcs_address)
    last = time.monotonic()

    def answers() -> bool:
        nonlocal last
        with contextlib.suppress(OSError):
            if place:
                knock(*place, seconds=5)
            last = time.monotonic()
        return time.monotonic() - last < _PATIENCE_SECONDS

    return answers


def _watch_head(is_alive: Callable[[], bool], ended: threading.Event) -> None:
    """End the process in one sentence once Ray's head is gone; what waits for it waits for ever, or is aborted."""
    while not ended.wait(_LOOK_EVERY_SECONDS):
        if not is_alive() and not ended.is_set():
            print("\nerror: Ray's head has died: what was finished is kept; continue with --resume", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(EXIT_USER_ERROR)


def _start(ray: object, address: str | None, num_cpus: int, workers_have: dict[str, str]) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if workers_have:
        common["runtime_env"] = {"env_vars": workers_have}
    if address:
        if place := split_address(address):  # Ray itself goes on trying for ten minutes and more
            knock(*place, seconds=10)
        with on_localhost() if is_on_localhost(address) else contextlib.nullcontext():
            ray.init(address=address, **common)  # type: ignore[attr-defined]
        return
    # Every port is bound to localhost; otherwise the address below becomes the machine's own, on all interfaces.
    with on_localhost():
        ray.init(  # type: ignore[attr-defined]
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=256 * 1024**2,
            **common,
        )
