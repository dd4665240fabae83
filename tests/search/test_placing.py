"""What processes ask Ray for, and how many of them a cluster has room for."""

import pytest

from slm_ray.search.placing import actor_options, resources, room


@pytest.mark.parametrize("device, gpus", [("cpu", {}), ("cuda", {"num_gpus": 0.5})])
def test_two_processes_share_a_gpu_and_none_is_asked_for_without(device, gpus):
    assert actor_options(device, 2) == {"num_cpus": 2, **gpus}
    assert resources(device, 2) == {"cpu": 2.0} | ({"gpu": 0.5} if gpus else {})


@pytest.mark.parametrize(
    "device, threads, there, count",
    [
        ("cpu", 1, {"CPU": 8.0, "GPU": 1.0}, 8),
        ("cpu", 3, {"CPU": 8.0}, 2),
        ("cuda", 1, {"CPU": 8.0, "GPU": 1.0}, 2),
        ("cuda", 4, {"CPU": 8.0, "GPU": 4.0}, 2),
        ("cuda", 1, {"CPU": 8.0}, 0),
        ("cpu", 1, {}, 0),
    ],
)
def test_room_is_what_is_scarcest(device, threads, there, count):
    assert room(device, threads, there) == count
