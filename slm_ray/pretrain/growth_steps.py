"""What growth does to a model: inherit a source's first layers, put more on top, and the loss that is to be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards
from slm_ray.evaluate.held_out import held_out_loss
from slm_ray.models.extraction import extract
from slm_ray.models.loading import load_student
from slm_ray.models.teachers import Teacher
from slm_ray.pretrain.build import Place, resolve_precision
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.engine import DTYPES, Tensors, autocast
from slm_ray.pretrain.micro_batch import default_micro_batch
from slm_ray.pretrain.module import StudentLoss, check_logits
from slm_ray.pretrain.state_files import read_state
from slm_ray.records.architecture import Architecture
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.runtime.copies import local_copy


def stage_depths(source_layers: int, grow_from: int, grow_by: int) -> tuple[int, ...]:
    """The depth of every stage there may be; the last one is the source's whole depth.

    Raises:
        UserError: The source has fewer layers than growth is to begin with.
    """
    if grow_from > source_layers:
        raise UserError(
            f"--grow-from {grow_from} is more than the {source_layers} layers that --student has: give {source_layers} "
            "or less"
        )
    return (*range(grow_from, source_layers, grow_by), source_layers)


def first_layers(source: Architecture, layers: int) -> SubnetSpec:
    """A source's first layers, whole."""
    whole = full_subnet(source)
    return SubnetSpec(whole.hidden, whole.layers[:layers])


def inherit(source: Teacher, layers: int) -> Any:
    """A source's first layers with its embeddings, final norm and output head, in fp32."""
    first = first_layers(source.architecture(), layers)
    return extract(source.state(), source.config(), source.family(), first, dtype=torch.float32)


@torch.no_grad()
def grow(source: Teacher, layers: int, storage: str, name: str) -> tuple[Any, dict[str, Tensors]]:
    """A trained stage with the source's next layers on top.

    The stage's last checkpoint gives every parameter it has, embeddings, final norm and head included; the layers above
    it are the source's own.

    Args:
        source: The model that the stage was inherited from.
        layers: The depth to grow to.
        storage: Where the stage's checkpoints are.
        name: What to call the stage in an error.

    Returns:
        The model in fp32, and what the stage's optimiser gathered, by parameter name: nothing of the new layers.

    Raises:
        UserError: The checkpoint is missing or damaged.
    """
    checkpoints = CheckpointFolder(storage)
    last = checkpoints.latest()
    if last is None:
        raise UserError(f"{storage} holds no checkpoint of {name} to grow from: start a new run")
    model = inherit(source, layers)
    places = dict(model.named_parameters())
    with checkpoints.open(last) as folder:
        state, _ = read_state(folder)
        for key, parameter in load_student(folder, name).named_parameters():
            places[key].copy_(parameter)
    return model, state.optimizer


@dataclass(frozen=True)
class Measurement:
    """How a whole model is measured: just as the stages that are compared with it.

    Attributes:
        folder: The model's folder.
        name: What to call it in an error.
        held_out: Folder of the held-out tokens.
        separate: Attention stays inside documents.
        precision: The compute type, or ``auto``.
    """

    folder: str
    name: str
    held_out: str
    separate: bool
    precision: str

    def run(self, device: torch.device) -> float:
        """The held-out loss in nats per token, on a device.

        Raises:
            UserError: The model's logits are none that the losses here know, or its loss is no number.
        """
        model = load_student(local_copy(Path(self.folder)), self.name)
        check_logits(model, self.name)
        precision, place = resolve_precision(self.precision, device), Place(0, 1, device)
        module = StudentLoss(model.to(device), None, DTYPES[precision]).eval()
        held_out = TokenShards.open(local_copy(Path(self.held_out)))

        @torch.no_grad()
        def losses(ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
            with autocast(precision, device):
                found: torch.Tensor = module(ids, positions)[0]
            return found

        batch = default_micro_batch(min(8, held_out.num_sequences), held_out.sequence_length, place)
        loss = held_out_loss(losses, held_out, separate=self.separate, batch=batch, device=device).loss
        if not math.isfinite(loss):
            raise UserError(f"the held-out loss of {self.name} itself is {loss}: give --reference-loss")
        return loss


def measure_on_ray(measurement: Measurement, threads: int, use_gpu: bool) -> float:
    """Measure a whole model on a worker of the cluster that Ray is connected to.

    Args:
        measurement: What to measure.
        threads: CPU threads.
        use_gpu: On a GPU.

    Raises:
        UserError: As :meth:`Measurement.run`.
    """
    import ray

    def work() -> tuple[float | None, str]:
        torch.set_num_threads(threads)
        try:
            return measurement.run(torch.device("cuda" if use_gpu else "cpu")), ""
        except UserError as error:  # Ray would send it on with its traceback
            return None, str(error)

    loss, problem = ray.get(ray.remote(work).options(num_cpus=threads, num_gpus=int(use_gpu)).remote())
    if loss is None:
        raise UserError(problem)
    return float(loss)
