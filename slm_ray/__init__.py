"""slm_ray: search a pretrained language model for its best sub-networks, extract them, pretrain them, on Ray."""

from slm_ray.config.version import VERSION as __version__  # noqa: F401
from slm_ray.models.register import register_when_needed as _register_when_needed

_register_when_needed()
