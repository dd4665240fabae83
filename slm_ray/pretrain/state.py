"""A training state as files: a plain Hugging Face folder, with the optimiser and the trainer's own state beside it.

Weights and optimiser are safetensors by parameter name, so a checkpoint does not depend on how many workers wrote it,
on the ZeRO stage, or on the engine. Nothing is pickled.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from slm_ray.config.errors import UserError
from slm_ray.models.extraction import save_student
from slm_ray.models.precision import DTYPES
from slm_ray.pretrain.checkpoints import MANIFEST, CheckpointFolder
from slm_ray.records.base import Record, read_record, write_record
from slm_ray.records.files import read_json, write_json
from slm_ray.records.training import BestEvaluation, SpentFlops

Tensors = dict[str, torch.Tensor]
WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
_SEPARATOR = "::"  # between a parameter's name and the name of one of its optimiser tensors


@dataclass
class TrainingState:
    """A model and its optimiser as plain tensors by parameter name, whatever engine and number of workers made them."""

    # Name in the student to fp32 tensor on the CPU, tied weights once; empty except on rank 0
    weights: Tensors = field(default_factory=dict)
    # Parameter name to the optimiser's tensors; empty except on rank 0
    optimizer: dict[str, Tensors] = field(default_factory=dict)
    scale: float | None = None  # The loss scale of fp16; None otherwise


class TrainerState(Record):
    """Where a training stands, kept in every checkpoint."""

    FILE: ClassVar[str] = "trainer.json"
    step: int = 0  # Steps done
    tokens: int = 0  # Tokens trained on
    flops: SpentFlops = SpentFlops()  # FLOPs so far
    seconds: float = 0.0  # Time in steps so far
    best: BestEvaluation | None = None  # The best evaluation
    scale: float | None = None  # Loss scale of fp16
    recent: float | None = None  # Mean training loss of recent steps, against which a spike is judged; None at first


_OURS = (OPTIMIZER_FILE, TrainerState.FILE, MANIFEST)


def copy_static_files(source: Path, folder: Path) -> None:
    """Copy everything of a model folder that training does not change: config, tokenizer, modelling file, card."""
    for file in source.iterdir():
        is_weights = file.suffix in (".safetensors", ".bin", ".gguf") or file.name.endswith(".safetensors.index.json")
        if file.is_file() and not is_weights and file.name not in _OURS and not file.name.startswith("."):
            shutil.copyfile(file, folder / file.name)


def write_state(folder: Path, static: Path, state: TrainingState, trainer: TrainerState) -> None:
    """Fill a checkpoint's folder."""
    copy_static_files(static, folder)
    save_tensors(folder / WEIGHTS_FILE, state.weights)
    flat = {
        f"{name}{_SEPARATOR}{key}": value for name, entry in state.optimizer.items() for key, value in entry.items()
    }
    if flat:
        save_tensors(folder / OPTIMIZER_FILE, flat)
    write_record(folder, trainer.model_copy(update={"scale": state.scale}))


def read_state(folder: Path) -> tuple[TrainingState, TrainerState]:
    """Read the optimiser and the trainer's state of a checkpoint; ``load_student`` reads its weights."""
    try:
        trainer = read_record(folder, TrainerState)
    except UserError as error:
        raise UserError(f"{error}; or delete this checkpoint and resume from one before") from error
    state = TrainingState(scale=trainer.scale)
    path = folder / OPTIMIZER_FILE
    if path.exists():
        for key, value in load_tensors(path).items():
            name, _, entry = key.rpartition(_SEPARATOR)
            state.optimizer.setdefault(name, {})[entry] = value
    return state, trainer


def save_tensors(path: Path, tensors: Tensors) -> None:
    """Write tensors as safetensors."""
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"{path} could not be written ({error}): free some space there") from error


def load_tensors(path: Path) -> Tensors:
    """Read safetensors."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): delete this checkpoint and resume from one before") from error


def write_weights(source: Path, folder: Path, dtype: str) -> int:
    """Write a checkpoint's model files with its weights in another type."""
    copy_static_files(source, folder)
    target = DTYPES[dtype]
    weights = {name: value.to(target) if value.is_floating_point() else value
               for name, value in load_tensors(source / WEIGHTS_FILE).items()}  # fmt: skip
    save_tensors(folder / WEIGHTS_FILE, weights)
    config = read_json(folder / "config.json")
    config.pop("torch_dtype", None)
    write_json(folder / "config.json", config | {"dtype": str(target).removeprefix("torch.")})
    return sum(value.numel() * value.element_size() for value in weights.values())


def write_first_checkpoint(
    model: Any, tokenizer: Any, storage: str, optimizer: dict[str, Tensors] | None = None
) -> None:
    """Save a start as the checkpoint of step 0, from which every worker loads it."""
    weights = {key: parameter.detach() for key, parameter in model.named_parameters()}
    state = TrainingState(weights, optimizer or {})
    with tempfile.TemporaryDirectory(prefix="slm_ray-start-") as scratch:
        save_student(model, Path(scratch), tokenizer)
        CheckpointFolder(storage).save(0, lambda folder: write_state(folder, Path(scratch), state, TrainerState()), {})
