"""Parts of the script that brings up hosts; the script itself takes minutes and root: python -m tests.runtime.hosts."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.runtime import netns, work
from tests.runtime.hosts import REPOSITORY, cluster_config


def test_the_file_that_hosts_are_brought_up_with_is_ours_filled_in():
    given = yaml.safe_load((REPOSITORY / "cluster.local.yaml").read_text())
    config = cluster_config(given, "10.0.0.1", ["10.0.0.2"], "root", Path("/opt/venv/bin/python"), Path("/all"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        validate_config(prepare_config(config))
    assert given["provider"]["head_ip"] != config["provider"]["head_ip"], "what was given is left alone"
    assert config["file_mounts"] == given["file_mounts"]
    setup = " ".join(config["setup_commands"])
    assert "/uv" not in setup and "PATH=/opt/venv/bin" in setup and "RAY_AUTH_MODE=token" in setup
    assert "SLM_RAY_STORAGE=/all" in setup
    (before,) = [line for line in given["head_start_ray_commands"] if "ray start" in line]
    (after,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert before in after and after.endswith(f"--object-store-memory={256 << 20}")
    for line in (*config["setup_commands"], after):
        assert subprocess.run(["bash", "-n"], input=line, text=True).returncode == 0


def test_workers_are_counted_by_machine_and_kind():
    actors = [["RayTrainWorker", "head", "01"], ["RayTrainWorker", "worker-1", "01"], ["Trial", "head", "02"]]
    said = f"a line of Ray's\nACTORS {json.dumps(actors)}\n"
    assert work.worked(said) == {"head": {"RayTrainWorker": 1, "Trial": 1}, "worker-1": {"RayTrainWorker": 1}}


def test_without_root_no_host_is_made_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(netns.os, "geteuid", lambda: 1000)
    with pytest.raises(netns.NotPermitted, match="take root"), netns.hosts(["desk"]):
        pass


def test_the_interpreter_stays_in_sight_where_a_hosts_own_home_hides_it(monkeypatch, tmp_path):
    monkeypatch.setattr(netns.sys, "base_prefix", str(Path.home() / ".python"))
    lines = list(netns._binds(tmp_path))
    assert any(f"mount --bind {Path.home()}/.python {tmp_path}/home/.python" in line for line in lines)
