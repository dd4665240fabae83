"""What a cluster has room for, machines included that its autoscaler would start."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

_FLAG = "--autoscaling-config="
_HEAD = "node:__internal_head__"  # a resource of the head's alone


def cluster_room() -> dict[str, float]:
    """Ray's resources by name: what is there, or what the cluster's file allows where that is more.

    A cluster whose GPU machines come with the work has none before there is work.
    """
    import ray

    there = ray.cluster_resources()
    allowed = _by_its_file(ray.get_runtime_context().gcs_address)
    return {name: max(there.get(name, 0.0), allowed.get(name, 0.0)) for name in {*there, *allowed}}


@lru_cache(maxsize=1)
def _by_its_file(address: str) -> dict[str, float]:
    """The most that the autoscaler of the cluster at an address would have; nothing where it has none.

    It is a process on the head, which was given the cluster's file at its start.
    """
    import ray

    port = address.rpartition(":")[2]
    head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]), None)
    if head in (None, ray.get_runtime_context().get_node_id()):
        return limits_on_head(port)
    task = ray.remote(limits_on_head).options(num_cpus=0, resources={_HEAD: 0.001})
    return dict(ray.get(task.remote(port)))


def limits_on_head(port: str) -> dict[str, float]:
    """What the autoscaler of the cluster at a port allows, if it runs on this machine."""
    import psutil
    import yaml

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, yaml.YAMLError):
            words = process.cmdline()
            path = next((word.removeprefix(_FLAG) for word in words if word.startswith(_FLAG)), None)
            if path and any(word.startswith("--gcs-address=") and word.endswith(f":{port}") for word in words):
                return limits_of(yaml.safe_load(Path(path).expanduser().read_text()))
    return {}


def limits_of(config: dict[str, Any]) -> dict[str, float]:
    """The most of every resource that a cluster's file, as its autoscaler reads it, allows: of its head and workers."""
    head, most_workers = config.get("head_node_type"), int(config.get("max_workers", 2))  # Ray's own default
    found: dict[str, float] = defaultdict(float)
    for which, kind in (config.get("available_node_types") or {}).items():
        machines = min(int(kind.get("max_workers", most_workers)), most_workers) if which != head else 1
        for name, amount in (kind.get("resources") or {}).items():
            found[name] += float(amount) * machines
    return dict(found)
