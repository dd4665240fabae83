"""What the training loop asks of an engine, and the engine that is plain torch (one process, or DDP)."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from slm_ray.models.precision import DTYPES
from slm_ray.pretrain.module import StudentLoss
from slm_ray.pretrain.optimizers import load_state_by_name, state_by_name
from slm_ray.pretrain.state import Tensors, TrainingState
from slm_ray.records.training import EngineFacts


@dataclass(frozen=True)
class Place:
    """Which worker this is, and where it computes."""

    rank: int  # Its number
    world: int  # How many workers train the model
    device: torch.device  # Where the model is

    def gathered_sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all workers, on the CPU (NCCL sums on the GPU only)."""
        if self.world == 1:
            return value.cpu()
        there = value.to(self.device, copy=True)
        dist.all_reduce(there)
        return there.cpu()


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built with."""

    precision: str  # ``fp32``, ``bf16`` or ``fp16``: the type matrices are multiplied in; weights stay fp32
    clip: float  # Largest gradient norm; 0 clips nothing
    micro_batch: int  # Sequences per forward pass of a worker
    accumulation: int  # Forward passes per step of a worker
    zero: int  # ZeRO stage
    offload: bool  # Optimiser state in CPU memory
    device: torch.device  # Where the model is
    rank: int  # This worker
    world: int  # How many there are


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision: matrices are multiplied in ``precision``."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


@torch.no_grad()
def next_losses(
    module: StudentLoss, precision: str, device: torch.device, ids: torch.Tensor, positions: torch.Tensor | None
) -> torch.Tensor:
    """The loss of every next token, in nats, in a precision: ``[batch * (sequence - 1)]``."""
    with autocast(precision, device):
        found: torch.Tensor = module(ids, positions)[0]
    return found


class Engine(abc.ABC):
    """Runs forward and backward passes and steps of one worker."""

    settings: EngineSettings
    module: StudentLoss

    @abc.abstractmethod
    def backward(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """One micro-batch, forward and backward; returns what :meth:`StudentLoss.forward` returns, detached."""

    @abc.abstractmethod
    def step(self, factor: float) -> float:
        """Update the weights at ``factor`` times each group's rate; returns the gradient's norm before clipping."""

    @abc.abstractmethod
    def state(self) -> TrainingState:
        """The whole state. All workers must call it."""

    @abc.abstractmethod
    def load_optimizer(self, state: TrainingState) -> None:
        """Put back the optimiser's state. The weights are those of the module that the engine was built with."""

    @abc.abstractmethod
    def describe(self) -> EngineFacts:
        """What really runs, read off the objects in use."""

    def losses(self, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """The loss of every next token. All workers must call it equally often."""
        return next_losses(self.module, self.settings.precision, self.settings.device, ids, positions)


def cpu_weights(module: StudentLoss) -> Tensors:
    """Copies of the student's weights on the CPU, tied weights once."""
    return {name: parameter.detach().cpu().clone() for name, parameter in module.student.named_parameters()}


class TorchEngine(Engine):
    """Plain torch: autocast, DistributedDataParallel where there are several workers."""

    def __init__(self, module: StudentLoss, optimizer: torch.optim.Optimizer, settings: EngineSettings) -> None:
        self.settings, self.module, self.optimizer = settings, module, optimizer
        self._scaler = torch.amp.GradScaler(settings.device.type, enabled=settings.precision == "fp16")
        self._model: Any = module
        if settings.world > 1:
            # Unused parameters do not occur; buckets as views save a copy of the gradients.
            self._model = torch.nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        self._done = 0

    @contextlib.contextmanager
    def _accumulating(self) -> Iterator[None]:
        """No gradient exchange before a step's last micro-batch."""
        self._done += 1
        is_last = self._done % self.settings.accumulation == 0
        with contextlib.nullcontext() if is_last or self.settings.world == 1 else self._model.no_sync():
            yield

    def backward(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """One micro-batch, forward and backward."""
        with self._accumulating():
            with autocast(self.settings.precision, self.settings.device):
                parts = self._model(**inputs)
            self._scaler.scale(parts[0] / self.settings.accumulation).backward()
        return tuple(part.detach() for part in parts)

    def step(self, factor: float) -> float:
        """Clip and update."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip or float("inf"))
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state(self) -> TrainingState:
        """Weights and optimiser state of rank 0; all workers hold the same."""
        if self.settings.rank:
            return TrainingState()
        scale = float(self._scaler.get_scale()) if self._scaler.is_enabled() else None
        return TrainingState(cpu_weights(self.module), state_by_name(self.optimizer, self.module.student), scale)

    def load_optimizer(self, state: TrainingState) -> None:
        """Put back the optimiser's state."""
        load_state_by_name(self.optimizer, self.module.student, state.optimizer)
        if state.scale is not None and self._scaler.is_enabled():
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": state.scale})

    def describe(self) -> EngineFacts:
        """What really runs."""
        return EngineFacts(
            engine="torch" if self.settings.world == 1 else "torch DDP", optimizer=type(self.optimizer).__name__,
            precision=self.settings.precision, zero=0,
            weights=str(next(self.module.parameters()).dtype).removeprefix("torch."),
        )  # fmt: skip
