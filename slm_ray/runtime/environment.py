"""What a run runs on: processor, memory, packages."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from slm_ray.records.run import Environment

_PACKAGES = (
    "slm-ray", "torch", "transformers", "ray", "pymoo", "numpy", "safetensors", "tokenizers", "gguf", "datasets",
    "wandb",
)  # fmt: skip


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def package_versions() -> dict[str, str]:
    """The installed versions of the packages a result may depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def usable_cpus() -> int:
    """CPUs this process may use (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def describe_environment() -> Environment:
    """Python, packages, processor, memory and system of this process."""
    return Environment(
        python=platform.python_version(), packages=package_versions(), machine=platform.machine(), cpu=_cpu_name(),
        system=f"{platform.system()} {platform.release()}", cpus=usable_cpus(), memory_bytes=_memory_bytes(),
        implementation=sys.implementation.name,
    )  # fmt: skip
