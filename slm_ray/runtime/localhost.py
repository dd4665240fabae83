"""Joining a head that listens on this machine alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from slm_ray.runtime.addresses import knock, split_address

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SECONDS = 3.0


def is_on_localhost(address: str) -> bool:
    """Whether a cluster's head takes connections at this machine's localhost and not at its own address.

    Ray puts a machine's own address in the place of localhost, and would wait there for a minute.

    Args:
        address: ``host:port``, or ``auto`` for the cluster of this machine, which must be running.
    """
    from ray._private import services

    given = services.get_ray_address_from_environment(address, None) if address == "auto" else address
    place = split_address(str(given))
    if place is None or place[0] not in _LOOPBACK:
        return False
    try:
        knock(services.get_node_ip_address(), place[1], _SECONDS)
    except OSError:
        return True
    return False


@contextlib.contextmanager
def on_localhost() -> Iterator[None]:
    """Inside the block, a process that joins a cluster is known there by its localhost."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray's own switch for a node that is alone
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
