"""Ray is started and joined on localhost only, unless a cluster says otherwise."""

from __future__ import annotations

import socket
import subprocess
import sys

import psutil
import pytest

from slm_ray.config.errors import UserError
from slm_ray.runtime import session
from slm_ray.runtime.session import is_on_localhost, ray_session, split_address
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
    monkeypatch.setattr(session, "machine_address", lambda: "127.0.0.2")


def listening(host):
    server = socket.create_server((host, 0))
    return server, server.getsockname()[1]


def test_nothing_listens_on_other_addresses_and_a_dead_head_is_noticed(one_ray):
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        entry.laddr.ip for process in family for entry in process.net_connections("inet") if entry.status == "LISTEN"
    ]
    assert len(listening) >= 3 and {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    is_alive = session._head_runs()
    assert is_alive()


def test_addresses(tmp_path, monkeypatch):
    assert split_address("head:6379") == ("head", 6379) and split_address("[::1]:80") == ("::1", 80)
    assert split_address("auto") is None
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert session._running_here() == "" and not is_on_localhost("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:5\n")
    assert session._running_here() == "127.0.0.1:5"


def test_rays_client_is_refused_with_what_to_do_instead():
    says = r"--address ray://head:10001 is Ray's client, .* with `ray job submit --working-dir . -- slm-ray …`"
    with pytest.raises(UserError, match=says), ray_session("ray://head:10001", 1):
        pass


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
