"""What a cluster has room for, machines included that its autoscaler would start."""

from __future__ import annotations


def cluster_room() -> dict[str, float]:
    """Ray's resources by name: what is there, or what the cluster's file allows where that is more.

    A cluster whose GPU machines come with the work has none before there is work; Ray Train looks at the same limits.
    """
    import ray
    from ray._private.state import state

    there = ray.cluster_resources()
    allowed = state.get_max_resources_from_cluster_config() or {}
    return {name: max(there.get(name, 0.0), float(allowed.get(name, 0.0))) for name in {*there, *allowed}}
