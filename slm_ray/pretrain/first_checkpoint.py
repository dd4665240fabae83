"""A start as the checkpoint of step 0, from which every worker loads it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from slm_ray.models.extraction import save_student
from slm_ray.models.families import config_architecture
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.engine import Tensors, TrainingState
from slm_ray.pretrain.inputs import check_positions
from slm_ray.pretrain.state_files import TrainerState, write_state
from slm_ray.records.cost import flops_per_token, num_params


def write_first_checkpoint(
    model: Any, tokenizer: Any, sequence_length: int, storage: str, name: str,
    optimizer: dict[str, Tensors] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Save a start as the checkpoint of step 0, and describe it.

    Args:
        model: The model in fp32.
        tokenizer: Goes beside it.
        sequence_length: The context at which FLOPs are counted.
        storage: Where its checkpoints go.
        name: What to call it in an error.
        optimizer: What the optimiser already gathered, by parameter name; parameters it lacks start fresh.

    Raises:
        UserError: It has too few positions, or the storage cannot be written.
    """
    check_positions(model.config, name, sequence_length)
    weights = {key: parameter.detach() for key, parameter in model.named_parameters()}
    state = TrainingState(weights, optimizer or {})
    with tempfile.TemporaryDirectory(prefix="slm_ray-start-") as scratch:
        save_student(model, Path(scratch), tokenizer)
        CheckpointFolder(storage).save(0, lambda folder: write_state(folder, Path(scratch), state, TrainerState()), {})
    flops, exact = forward_flops_per_token(model.config, size_of(model.config, model), sequence_length)
    architecture = config_architecture(model.config)
    return {
        "params": size_of(model.config, model),
        "flops_per_token": flops,
        "flops_exact": exact,
        "architecture": architecture.to_json() if architecture else None,
    }


def forward_flops_per_token(model_config: Any, parameters: int, sequence_length: int) -> tuple[float, bool]:
    """FLOPs of a token's forward pass, and whether they are exact (else twice the parameters, as is customary)."""
    architecture = config_architecture(model_config)
    if architecture is None:
        return 2.0 * parameters, False
    return float(flops_per_token(architecture, sequence_length)), True


def size_of(model_config: Any, model: Any) -> int:
    """Parameters of a model, tied ones once."""
    architecture = config_architecture(model_config)
    return num_params(architecture) if architecture else sum(parameter.numel() for parameter in model.parameters())
