"""The version of slm_ray that is installed."""

from __future__ import annotations

from importlib import metadata

try:
    VERSION = metadata.version("slm-ray")
except metadata.PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0.0.0"
