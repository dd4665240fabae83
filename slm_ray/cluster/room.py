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


def free_room() -> dict[str, float]:
    """Of :func:`cluster_room`, what nobody uses now; machines that would be started are free."""
    import ray

    most, there, free = cluster_room(), ray.cluster_resources(), ray.available_resources()
    return {name: free.get(name, 0.0) + most[name] - there.get(name, 0.0) for name in most}
