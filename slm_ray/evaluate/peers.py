"""Peers that are made: the random twin of a model, and its teacher's first layers at its size; kept in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.evaluate.models import ModelFolder, find_model
from slm_ray.models.extraction import save_student
from slm_ray.models.starts import build_start
from slm_ray.models.teachers import load_teacher
from slm_ray.records.files import cache_folder, whole_folder
from slm_ray.runtime.progress import Console

_FOLDER = "peers"
_FORMAT = 1
_TOKENIZER_PATTERNS = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "*.model", "*.jinja")


def random_twin(model: ModelFolder, seed: int, console: Console) -> ModelFolder:
    """A model of the same architecture, as its class initialises it.

    Args:
        model: The model.
        seed: Of its weights.
        console: Where to print.

    Raises:
        UserError: The model cannot be loaded, or the disk is full.
    """
    key = {"kind": "random", "model": model.digest, "seed": seed}
    return _kept(key, model, lambda: build_start("random", model.folder, model.name, seed, None), console)


def first_layers(model: ModelFolder, teacher: str, console: Console) -> ModelFolder:
    """The teacher's first whole layers, as many as the model's size allows (Inheritune, arXiv 2404.08634).

    Args:
        model: The model.
        teacher: A model folder, hub id, ``.gguf`` file or ``smollm2-135m``.
        console: Where to print.

    Raises:
        UserError: The teacher or the model is of no declared family, cannot be loaded, or even one layer is too large.
    """
    loaded = load_teacher(teacher)
    key = {"kind": "first-n", "model": model.digest, "teacher": loaded.digest}
    return _kept(key, model, lambda: build_start("first-n", model.folder, model.name, 0, loaded), console)


def _kept(key: dict[str, Any], model: ModelFolder, build: Callable[[], Any], console: Console) -> ModelFolder:
    """A peer's folder in the cache, made if it is not there."""
    folder = cache_folder() / _FOLDER / f"{key['kind']}-{digest_json({'format': _FORMAT, **key})}"
    if not (folder / "config.json").is_file():
        console.line(f"making the {key['kind']} peer of {model.name}")
        with whole_folder(folder) as temporary:
            save_student(build(), temporary)
            _copy_tokenizer(model.folder, temporary)
    try:
        return find_model(str(folder))
    except UserError as error:
        raise UserError(f"{error}; it is a peer that slm_ray made: delete the folder, and it is made again") from error


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in _TOKENIZER_PATTERNS:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
