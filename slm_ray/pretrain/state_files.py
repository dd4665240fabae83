"""A training state as files: a plain Hugging Face folder, with the optimiser and the trainer's own state beside it.

Weights and optimiser are safetensors by parameter name, so a checkpoint does not depend on how many workers wrote it,
on the ZeRO stage, or on the engine. Nothing is pickled.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from slm_ray.config.errors import UserError
from slm_ray.pretrain.engine import Tensors, TrainingState
from slm_ray.records.files import read_json, write_json

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TRAINER_FILE = "trainer.json"
_OURS = (OPTIMIZER_FILE, TRAINER_FILE, "checkpoint.json")
_SEPARATOR = "::"  # between a parameter's name and the name of one of its optimiser tensors


@dataclass
class TrainerState:
    """Where a run stands.

    Attributes:
        step: Steps done.
        tokens: Tokens trained on.
        flops: FLOPs so far: ``own``, ``teacher``, ``capture``.
        seconds: Time in steps so far.
        best: Step and validation loss of the best evaluation, or None.
        scale: Loss scale of fp16.
        recent: Mean training loss of recent steps, against which a spike is judged; None at first.
    """

    step: int = 0
    tokens: int = 0
    flops: dict[str, float] = field(default_factory=lambda: {"own": 0.0, "teacher": 0.0, "capture": 0.0})
    seconds: float = 0.0
    best: dict[str, float] | None = None
    scale: float | None = None
    recent: float | None = None


def copy_static_files(source: Path, folder: Path) -> None:
    """Copy everything of a model folder that training does not change: config, tokenizer, modelling file, card."""
    for file in source.iterdir():
        is_weights = file.suffix in (".safetensors", ".bin", ".gguf") or file.name.endswith(".safetensors.index.json")
        if file.is_file() and not is_weights and file.name not in _OURS and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)


def write_state(folder: Path, static: Path, state: TrainingState, trainer: TrainerState) -> None:
    """Fill a checkpoint's folder.

    Args:
        folder: An empty folder.
        static: A model folder to take config and tokenizer from.
        state: Weights and optimiser.
        trainer: Where the run stands.
    """
    copy_static_files(static, folder)
    _save_tensors(folder / WEIGHTS_FILE, state.weights)
    flat = {
        f"{name}{_SEPARATOR}{key}": value for name, entry in state.optimizer.items() for key, value in entry.items()
    }
    if flat:
        _save_tensors(folder / OPTIMIZER_FILE, flat)
    write_json(folder / TRAINER_FILE, vars(trainer) | {"scale": state.scale})


def read_state(folder: Path) -> tuple[TrainingState, TrainerState]:
    """Read the optimiser and the trainer's state of a checkpoint; ``load_student`` reads its weights.

    Raises:
        UserError: A file is damaged.
    """
    trainer = _trainer_of(folder / TRAINER_FILE)
    state = TrainingState(scale=trainer.scale)
    path = folder / OPTIMIZER_FILE
    if path.exists():
        for key, value in _load_tensors(path).items():
            name, _, entry = key.rpartition(_SEPARATOR)
            state.optimizer.setdefault(name, {})[entry] = value
    return state, trainer


def _trainer_of(path: Path) -> TrainerState:
    try:
        trainer = TrainerState(**read_json(path))
        whole = all(isinstance(value, int) for value in (trainer.step, trainer.tokens)) and "own" in trainer.flops
    except (TypeError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged (its fields are others): delete this checkpoint and resume from one before")
    return trainer


def _save_tensors(path: Path, tensors: Tensors) -> None:
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"{path} could not be written ({error}): free some space there") from error


def _load_tensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): delete this checkpoint and resume from one before") from error
