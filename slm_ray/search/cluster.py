"""Starting Ray, or joining it, quietly and on this machine's own address only."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from slm_ray.core.environment import usable_cpus
from slm_ray.core.errors import UserError

# Read by Ray when it is imported and when its processes start.
_QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# glibc gives large blocks back to the system and faults them in again at every layer of every candidate, unless told to
# keep them; read by workers when they start.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def default_workers(threads: int) -> int:
    """Trials at once on this machine: its usable CPUs over the threads of a trial."""
    return max(1, usable_cpus() // threads)


@contextlib.contextmanager
def ray_session(address: str | None, num_cpus: int) -> Iterator[None]:
    """Have Ray running inside the block.

    Args:
        address: A cluster to join; None starts one on this machine that listens on localhost only, without a dashboard.
        num_cpus: CPUs of a cluster started here.

    Raises:
        UserError: Ray cannot start, or the cluster cannot be reached.
    """
    for name, value in (_QUIET | _KEEP_MEMORY).items():
        os.environ.setdefault(name, value)
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        try:
            _start(ray, address, num_cpus)
        except Exception as error:
            # Ray raises many types here (timeouts, connection errors, its own); each ends in one sentence.
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
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
            raise UserError(f"{where} ({lines[0][:160]}): {fix}") from error
    try:
        yield
    finally:
        if started_here:
            ray.shutdown()


def _start(ray: object, address: str | None, num_cpus: int) -> None:
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        ray.init(address=address, **common)  # type: ignore[attr-defined]
        return
    ray.init(  # type: ignore[attr-defined]
        num_cpus=num_cpus,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=256 * 1024**2,
        **common,
    )
