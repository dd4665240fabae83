"""slm_ray: search a pretrained language model for its best sub-networks, extract them, pretrain them, on Ray."""

from importlib import metadata as _metadata

try:
    __version__ = _metadata.version("slm-ray")
except _metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

from slm_ray.models.register import register_when_needed as _register_when_needed

_register_when_needed()
