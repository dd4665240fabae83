"""What Ray starts here is reachable from this machine only."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import os, ray
from slm_ray.search.cluster import ray_session
with ray_session(None, 1):
    ray.get(ray.remote(lambda: 1).remote())
    print(os.popen("cat /proc/net/tcp /proc/net/tcp6").read())
    pids = {p for p in os.listdir("/proc") if p.isdigit()}
    print("INODES", *[os.readlink(f"/proc/{p}/fd/{f}") for p in pids if os.path.exists(f"/proc/{p}/environ")
          and b"SLM_RAY_PORT_TEST" in open(f"/proc/{p}/environ", "rb").read() for f in os.listdir(f"/proc/{p}/fd")
          if os.path.islink(f"/proc/{p}/fd/{f}") and "socket:" in os.readlink(f"/proc/{p}/fd/{f}")])
"""
_LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's socket table")
def test_every_port_of_a_local_cluster_listens_on_localhost_only() -> None:
    import os

    environment = os.environ | {"SLM_RAY_PORT_TEST": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    table, _, inodes = done.stdout.partition("INODES")
    ours = set(re.findall(r"socket:\[(\d+)\]", inodes))
    listening = [row.split() for row in table.splitlines() if len(row.split()) > 9 and row.split()[3] == "0A"]
    bound = [row[1].split(":")[0] for row in listening if row[9] in ours]
    assert len(bound) >= 3
    assert set(bound) <= _LOOPBACK
