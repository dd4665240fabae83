"""``host:port``, as Ray has it."""

from __future__ import annotations

import socket


def split_address(address: str) -> tuple[str, int] | None:
    """Host (an IPv6 one without its brackets) and port; None where an address is no such pair."""
    host, _, port = address.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None


def knock(host: str, port: int, seconds: float) -> None:
    """Make sure that somebody takes connections there.

    Raises:
        OSError: Nobody does within these seconds.
    """
    socket.create_connection((host, port), timeout=seconds).close()
