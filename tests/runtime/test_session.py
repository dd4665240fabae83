"""Ray is started and joined on localhost only, unless a cluster says otherwise."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from slm_ray.config.errors import UserError
from slm_ray.runtime import session
from slm_ray.runtime.session import ray_session

JOIN = """
import sys
from pathlib import Path
from slm_ray.runtime.fan_out import FanOut
from slm_ray.runtime.session import ray_session
from slm_ray.runtime.shared import local_copy

folder, storage, pipe = Path(sys.argv[2]), sys.argv[3], sys.argv[4]

def read():
    def work(item):
        import os, ray
        os.close(os.open(pipe, (os.O_RDONLY, os.O_WRONLY)[item]))  # opens when the other machine opens its end
        return ray.get_runtime_context().get_node_id(), (local_copy(folder) / "text").read_text()
    return work

with ray_session(sys.argv[1], 1, storage):
    import ray
    with FanOut(read, 2, reads=[folder], name="reader", say=print) as readers:
        found = readers.map(range(2))
    print("joined by", ray.util.get_node_ip_address(), len({node for node, _ in found}), {text for _, text in found})
"""


def test_nothing_listens_on_other_addresses_and_a_dead_head_is_noticed(one_ray):
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker of an earlier test that ends just now
            connections = process.net_connections("inet")
            listening += [entry.laddr.ip for entry in connections if entry.status == "LISTEN"]
    assert len(listening) >= 3 and {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    is_alive = session._head_runs()
    assert is_alive()


def test_rays_client_is_refused_with_what_to_do_instead():
    says = r"--address ray://head:10001 is Ray's client, .* with `ray job submit --working-dir . -- slm-ray …`"
    with pytest.raises(UserError, match=says), ray_session("ray://head:10001", 1):
        pass


@pytest.mark.slow
def test_a_cluster_of_two_machines_on_localhost_is_joined_and_used(tmp_path, monkeypatch):
    scratch = tempfile.mkdtemp()  # of its own, for there may be another cluster here; short, for sockets are in it
    monkeypatch.setenv("RAY_TMPDIR", scratch)
    (Path(scratch) / "ray").mkdir()
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a head on localhost, joined as such
    given = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text").write_text("read by all")
    cluster = Cluster(initialize_head=True, head_node_args={**given, "include_dashboard": False, "temp_dir": scratch})
    try:
        cluster.add_node(wait=True, **given)
        os.mkfifo(tmp_path / "pipe")
        places = (tmp_path / name for name in ("folder", "storage", "pipe"))
        words = [sys.executable, "-c", JOIN, cluster.address, *map(str, places)]
        root = Path(__file__).parents[2]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=root)
    finally:
        cluster.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "joined by 127.0.0.1 2 {'read by all'}" in done.stdout
