"""Ray, on this machine or on many: starting or joining it, and the driver's files on machines that do not see them."""

from slm_ray.cluster.copies import fetch_file, local_copy
from slm_ray.cluster.deliveries import outbox, send_file
from slm_ray.cluster.home import Home, home_of, pinned_to_home
from slm_ray.cluster.room import cluster_room, free_room
from slm_ray.cluster.session import default_workers, ray_session

__all__ = [
    "Home",
    "cluster_room",
    "default_workers",
    "fetch_file",
    "free_room",
    "home_of",
    "local_copy",
    "outbox",
    "pinned_to_home",
    "ray_session",
    "send_file",
]
