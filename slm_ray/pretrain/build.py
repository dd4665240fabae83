"""Engines, optimisers and teacher signals from a job's options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.data.shards import TokenShards
from slm_ray.distill.losses import Divergence
from slm_ray.distill.online import OnlineTeacher
from slm_ray.distill.signal import SparseSignal, TeacherSignal
from slm_ray.models.precision import choose_precision
from slm_ray.pretrain.engine import DTYPES, Engine, EngineSettings, TorchEngine
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.module import StudentLoss, check_documents, check_logits
from slm_ray.pretrain.optimizers import build_optimizer
from slm_ray.runtime.copies import local_copy

Signal = Callable[[npt.NDArray[np.int64], torch.Tensor, torch.Tensor | None], TeacherSignal]


@dataclass(frozen=True)
class Place:
    """Which worker this is, and where it computes.

    Attributes:
        rank: Its number.
        world: How many workers train the model.
        device: Where the model is.
    """

    rank: int
    world: int
    device: torch.device


def resolve_precision(wanted: str, device: torch.device) -> str:
    """``bf16`` where the device multiplies it natively, unless something is asked for."""
    if wanted == "auto" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp32"
    return choose_precision(wanted, device.type)


def build_module(job: TrainJob, place: Place, student: Any) -> StudentLoss:
    """Put a student in place, with its loss around it.

    Args:
        job: The job.
        place: This worker.
        student: The model, fp32.

    Raises:
        UserError: Its logits are not plainly hidden states times the output head, or it mixes documents.
    """
    check_logits(student, job.name)
    if job.documents == "separate":
        check_documents(student, job.name)
    student = student.to(place.device).train()
    if job.option("activation_checkpointing"):
        student.gradient_checkpointing_enable({"use_reentrant": False})
    divergence = None
    if job.distill != "none":
        divergence = Divergence(name=job.option("loss"), temperature=job.option("temperature"))
    return StudentLoss(student, divergence, DTYPES[resolve_precision(job.option("precision"), place.device)])


def build_engine(job: TrainJob, place: Place, module: StudentLoss, micro_batch: int) -> Engine:
    """Wrap a student in the engine that the job asks for.

    Args:
        job: The job.
        place: This worker.
        module: The student, in place.
        micro_batch: Sequences per forward pass.
    """
    optimizer = build_optimizer(
        job.option("optimizer"), module.student, lr=job.option("learning_rate"),
        betas=(job.option("beta1"), job.option("beta2")), weight_decay=job.option("weight_decay"),
        fused=not job.option("offload"),
    )  # fmt: skip
    settings = EngineSettings(
        precision=resolve_precision(job.option("precision"), place.device), clip=job.option("clip"),
        micro_batch=micro_batch, accumulation=job.batch_size // place.world // micro_batch, zero=job.option("zero"),
        offload=job.option("offload"), device=place.device, rank=place.rank, world=place.world,
    )  # fmt: skip
    if job.option("engine") == "torch":
        return TorchEngine(module, optimizer, settings)
    from slm_ray.pretrain.zero import DeepSpeedEngine

    return DeepSpeedEngine(module, optimizer, settings)


def make_signal(job: TrainJob, place: Place, shards: TokenShards) -> Signal | None:
    """Where the teacher's signal comes from; None trains on the text alone.

    Raises:
        UserError: The store is not of this run's teacher, tokens or temperature.
    """
    if job.distill == "none":
        return None
    if job.distill == "full":
        dtype = DTYPES[resolve_precision(job.option("precision"), place.device)]
        teacher = OnlineTeacher(local_copy(Path(str(job.teacher))), dtype, place.device)
        return lambda _indices, ids, positions: teacher.signal(ids, positions)
    return _stored_signal(job, place, shards)


def _stored_signal(job: TrainJob, place: Place, shards: TokenShards) -> Signal:
    from slm_ray.distill.store import LogitStore

    store = LogitStore.open(local_copy(Path(str(job.store))))

    def read(indices: npt.NDArray[np.int64], _ids: torch.Tensor, _positions: torch.Tensor | None) -> TeacherSignal:
        found: SparseSignal = store.signal(indices, job.distill)
        return found.to(place.device)

    return read
