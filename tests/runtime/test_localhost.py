"""A head that listens on this machine alone is joined there."""

import socket
import subprocess
import sys

import pytest

from slm_ray.runtime.localhost import is_on_localhost
from tests.runtime.nodes import Nodes
from tests.runtime.test_files import ROOT

JOIN = """
import sys
from slm_ray.runtime.session import ray_session
with ray_session(sys.argv[1], 1):
    import ray
    print("joined by", ray.util.get_node_ip_address())
"""


@pytest.fixture
def own(monkeypatch):
    """This machine's own address, which is another one than its localhost."""
    from ray._private import services

    monkeypatch.setattr(services, "get_node_ip_address", lambda: "127.0.0.2")


def listening(host):
    server = socket.create_server((host, 0))
    return server, server.getsockname()[1]


def test_a_head_is_asked_at_both_addresses(own):
    here, port = listening("127.0.0.1")
    with here:
        assert is_on_localhost(f"127.0.0.1:{port}") and is_on_localhost(f"localhost:{port}")
        assert not is_on_localhost(f"10.0.0.7:{port}")
    everywhere, port = listening("0.0.0.0")
    with everywhere:
        assert not is_on_localhost(f"127.0.0.1:{port}")


@pytest.mark.slow
def test_a_cluster_on_localhost_is_joined_at_once():
    nodes = Nodes(1)
    try:
        words = [sys.executable, "-c", JOIN, nodes.address]
        done = subprocess.run(words, capture_output=True, text=True, timeout=400, cwd=ROOT)
    finally:
        nodes.close()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "joined by 127.0.0.1" in done.stdout
