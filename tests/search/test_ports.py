"""What Ray starts here is reachable from this machine only."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import psutil, ray
from slm_ray.runtime.session import ray_session
with ray_session(None, 1):
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                print(connection.laddr.ip)
"""


@pytest.mark.slow
def test_every_port_of_a_local_cluster_listens_on_localhost_only() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=600, check=True)
    bound = done.stdout.split()
    assert len(bound) >= 3  # the global control store, the raylet and the driver at least
    assert {address.removeprefix("::ffff:") for address in bound} <= {"127.0.0.1", "::1"}
