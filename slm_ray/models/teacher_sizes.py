"""A teacher's sizes for a dry run: read off what is here already; nothing is downloaded, converted or loaded."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.models.bundled import BUNDLED, BUNDLED_NAME
from slm_ray.models.families import family_of, scratch_structure
from slm_ray.models.families.published import published_architecture
from slm_ray.models.loading import check_weight_files, read_config
from slm_ray.models.precision import dtype_name
from slm_ray.models.teachers import check_family, load_teacher
from slm_ray.records.architecture import Architecture, LayerShape
from slm_ray.records.files import cache_folder

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The default teacher's sizes, so that its first dry run needs no download.
BUNDLED_ARCHITECTURE = Architecture(
    dataclasses.replace(scratch_structure(49_152, head_dim=64), max_position_embeddings=8192),
    576,
    (LayerShape(9, 3, 1536),) * 30,
)


@dataclass(frozen=True)
class TeacherSizes:
    """A teacher's sizes, known before anything is downloaded or converted."""

    name: str  # How the user called it
    architecture: Architecture | None  # Its sizes; None where only a download would tell
    dtype: str  # The type its own weights are saved in (:attr:`slm_ray.models.teachers.Teacher.dtype`)
    weight_bytes: int  # Bytes of one weight in the cache: bf16 and fp32 are kept, everything else becomes fp32
    note: str  # Whether it is here, or what the run will have to do first


def look_up_teacher(name: str) -> TeacherSizes:
    """Find a teacher's sizes without spending anything. Of a folder, config.json alone is needed."""
    path = Path(name).expanduser()
    if name in BUNDLED:
        here = BUNDLED[name].path(cache_folder()).is_file()
        note = "downloaded already" if here else f"{BUNDLED[name].download} come from the package index, once"
        sizes = BUNDLED_ARCHITECTURE if name == BUNDLED_NAME else published_architecture(BUNDLED[name].hub_id)
        return TeacherSizes(name, sizes, "bf16", 4, note)
    if path.suffix == ".gguf" and path.is_file():
        config = read_config(path.resolve().parent, _unreadable(name), gguf_file=path.name)
        return TeacherSizes(name, _architecture(config, name), "bf16", 4, "converted to safetensors, once")
    if path.is_dir():
        return _from_folder(name, path.resolve())
    if path.exists() or path.suffix == ".gguf" or not _HUB_ID.fullmatch(name) or name.startswith("."):
        load_teacher(name)  # raises at once: there is nothing of that name
    return _from_hub_cache(name)


def _from_folder(name: str, folder: Path) -> TeacherSizes:
    if not (folder / "config.json").is_file():
        load_teacher(name)  # raises at once, with what is missing
    check_family(name, folder)
    check_weight_files(f"teacher {name}", folder)
    note = "in its folder" if list(folder.glob("*.safetensors")) else "its weights are not in its folder yet"
    return _from_config(name, folder, note)


def _from_hub_cache(name: str) -> TeacherSizes:
    """The sizes of a hub model that was downloaded before, or that many use; others are not known."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        known = published_architecture(name)
        note = "comes from the hub, once" + ("" if known else "; its sizes are known when it is here")
        return TeacherSizes(name, known, "bf16" if known else "fp32", 4, note)
    folder = Path(found).parent
    check_family(name, folder)
    return _from_config(name, folder, "in the hub's cache, at least in part")


def _from_config(name: str, folder: Path, note: str) -> TeacherSizes:
    config = read_config(folder, _unreadable(name))
    dtype = dtype_name(getattr(config, "dtype", None))
    return TeacherSizes(name, _architecture(config, name), dtype, 2 if dtype == "bf16" else 4, note)


def _unreadable(name: str) -> str:
    return f"teacher {name} could not be read; check that it is a supported causal language model"


def _architecture(config: Any, name: str) -> Architecture:
    return family_of(config, name).architecture(config)
