"""What a cluster has room for, and the interface that its machines talk by."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml

from slm_ray.config.base import build_config
from slm_ray.pretrain import launch
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.launch import resources_of
from slm_ray.pretrain.process_group import name_interface
from slm_ray.runtime import room
from slm_ray.runtime.room import cluster_room


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of a head whose file allows four machines with a GPU, none of which is up."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "memory": 1e9})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="head:1"))
    monkeypatch.setattr(room, "_by_its_file", lambda address: {"CPU": 40.0, "GPU": 4.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])


def test_machines_that_would_come_count(cluster):
    assert cluster_room() == {"CPU": 40.0, "GPU": 4.0, "memory": 1e9}
    given = {"student": "a", "device": "cuda", "workers": 4, "batch_size": 8, "threads": 8}
    config = build_config(PretrainConfig, given)
    resources = resources_of(config, 1)
    assert resources.use_gpu and resources.how_many_fit(cluster_room()) == 1


def test_without_a_file_there_is_what_is_up(cluster, monkeypatch):
    monkeypatch.setattr(room, "_by_its_file", lambda address: {})
    assert cluster_room() == {"CPU": 8.0, "memory": 1e9}
    assert not resources_of(build_config(PretrainConfig, {"student": "a"}), 1).use_gpu


def test_threads_are_no_more_than_a_machine_of_the_cluster_has(cluster, monkeypatch):
    monkeypatch.setattr(launch, "usable_cpus", lambda: 64)  # of a login node
    monkeypatch.setattr(room, "_by_its_file", lambda address: {})
    assert resources_of(build_config(PretrainConfig, {"student": "a"}), 1).threads == 8


KINDS = {
    "head": {"resources": {"CPU": 8, "memory": 100}, "max_workers": 0},
    "gpu": {"resources": {"CPU": 8, "GPU": 1}, "min_workers": 0, "max_workers": 4},
    "big": {"resources": {"CPU": 32, "GPU": 8}, "max_workers": 2},
}


def test_limits_are_of_the_head_and_its_workers():
    config = {"max_workers": 3, "head_node_type": "head", "available_node_types": KINDS}
    assert room.limits_of(config) == {"CPU": 8 + 3 * 8 + 2 * 32, "GPU": 3 + 2 * 8, "memory": 100}


def test_the_file_is_the_one_that_this_clusters_autoscaler_was_given(tmp_path):
    """Its process is found by the cluster's port; one whose file is gone, or is no YAML, has no limits."""
    path = tmp_path / "bootstrap.yaml"
    path.write_text(yaml.safe_dump({"max_workers": 4, "head_node_type": "head", "available_node_types": KINDS}))
    words = [sys.executable, "-c", "input()", "--gcs-address=10.0.0.1:64321", f"--autoscaling-config={path}"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE)
    try:
        assert room.limits_on_head("64321")["GPU"] == 20
        assert room.limits_on_head("64322") == {}
        for text in ("a: [", None):
            path.write_text(text) if text else path.unlink()
            assert room.limits_on_head("64321") == {}
    finally:
        process.communicate(b"\n")


def test_the_files_of_this_project_allow_gpus():
    config = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    config["available_node_types"]["gpu"]["resources"] = {"CPU": 8, "GPU": 1}  # which `ray up` looks up at AWS
    assert room.limits_of(config)["GPU"] == 4


def test_gloo_talks_by_the_interface_with_rays_address(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    name_interface()
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    name_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
