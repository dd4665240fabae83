"""What a cluster has room for, and the interface that its machines talk by."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import ray
from ray._private.state import state

from slm_ray.cluster import cluster_room
from slm_ray.distill import capture_workers
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.ray_group import name_interface
from slm_ray.pretrain.run import resources_of


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of a head whose file allows four machines with a GPU, none of which is up."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "memory": 1e9})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 6.0, "memory": 1e9})
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: {"CPU": 40, "GPU": 4})


def test_machines_that_would_come_count(cluster):
    assert cluster_room() == {"CPU": 40.0, "GPU": 4.0, "memory": 1e9}
    config = PretrainConfig(student="a", device="cuda", workers=4, batch_size=8, threads=8)
    resources = resources_of(config, 1)
    assert resources.use_gpu and resources.how_many_fit(cluster_room()) == 1
    job = SimpleNamespace(threads=2, device="cuda")
    assert capture_workers.workers_that_fit(4, job, None) == 4


def test_without_a_file_there_is_what_is_up(cluster, monkeypatch):
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)
    assert cluster_room() == {"CPU": 8.0, "memory": 1e9}
    assert not resources_of(PretrainConfig(student="a"), 1).use_gpu


def test_gloo_talks_by_the_interface_with_rays_address(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    name_interface()
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    name_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
