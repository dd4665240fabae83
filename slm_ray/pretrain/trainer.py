"""The training loop of one worker: a plain function of a job, a rank and a world size.

Ray Train calls it, and so does torchrun, or a single process under a debugger or a profiler.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards
from slm_ray.distill.losses import Divergence
from slm_ray.distill.online import OnlineTeacher
from slm_ray.distill.signal import SparseSignal, TeacherSignal
from slm_ray.models.loading import load_student
from slm_ray.models.precision import DTYPES, choose_precision
from slm_ray.pretrain.batches import STATE_BYTES, Batches, MicroBatch, default_micro_batch, find_micro_batch
from slm_ray.pretrain.callbacks import StepFigures, default_callbacks
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.components import AUTO
from slm_ray.pretrain.engine import Engine, EngineSettings, Place, TorchEngine, autocast
from slm_ray.pretrain.job import Event, Say, TrainJob
from slm_ray.pretrain.module import StudentLoss, check_documents, check_logits
from slm_ray.pretrain.optimizers import build_optimizer
from slm_ray.pretrain.schedules import Schedule, WeightSchedule
from slm_ray.pretrain.state import copy_static_files, read_state
from slm_ray.records.training import TrainBegin, TrainFailure
from slm_ray.runtime.shared import local_copy

Signal = Callable[[npt.NDArray[np.int64], torch.Tensor, torch.Tensor | None], TeacherSignal]


def build_engine(job: TrainJob, place: Place, module: StudentLoss, micro_batch: int) -> Engine:
    """Wrap a student in the engine of a job."""
    config = job.config.engine
    optimizer = build_optimizer(job.config.optimizer, module.student, fused=not config.offload)
    settings = EngineSettings(
        precision=choose_precision(config.precision, place.device.type), clip=job.config.optimizer.clip,
        micro_batch=micro_batch, accumulation=job.config.batch_size // place.world // micro_batch, zero=config.zero,
        offload=config.offload, device=place.device, rank=place.rank, world=place.world,
    )  # fmt: skip
    if config.engine == "torch":
        return TorchEngine(module, optimizer, settings)
    from slm_ray.pretrain.zero import DeepSpeedEngine

    return DeepSpeedEngine(module, optimizer, settings)


class Trainer:
    """Trains one model on one worker.

    Attributes:
        job: What to train
        place: Which worker this is
        state: Where the training stands
        folder: Its checkpoints
        static: A folder with the files of the model that training does not change
        held_out: The held-out tokens
        engine: What runs the steps
        micro_batch: Sequences per forward pass
    """

    def __init__(self, job: TrainJob, place: Place, say: Say) -> None:
        self.job, self.place, self._say = job, place, say
        self.folder = CheckpointFolder(job.storage)
        checkpoint = self.folder.latest()
        if checkpoint is None:
            raise UserError(
                f"{job.storage} holds no checkpoint to start from: start a new run (on a cluster of several machines "
                "with --storage, a folder that all of them see or a bucket)"
            )
        self._static = tempfile.TemporaryDirectory(prefix="slm_ray-static-")
        self.static = Path(self._static.name)
        with self.folder.open(checkpoint) as folder:
            saved, self.state = read_state(folder)
            student = load_student(folder, job.name)
            copy_static_files(folder, self.static)
        shards, self.held_out = (TokenShards.open(local_copy(Path(path))) for path in (job.shards, job.held_out))
        self._signal = make_signal(job, place)
        torch.manual_seed(job.seed)
        module = build_module(job, place, student)
        self._batches = Batches(
            shards, job.seed, job.config.batch_size, separate=job.separate, rank=place.rank, world=place.world,
            sequences=job.sequences,
        )  # fmt: skip
        self.micro_batch = self._choose_micro_batch(module, shards.sequence_length)
        self.engine: Engine = build_engine(job, place, module, self.micro_batch)
        self.engine.load_optimizer(saved)
        self._schedule = Schedule.of(job.config.schedule, job.schedule_steps)
        self._weights = WeightSchedule(job.config.distill.kd_schedule, job.config.distill.kd_weight)
        self._callbacks = default_callbacks()

    def run(self) -> None:
        """Train to the end."""
        self.say(TrainBegin(step=self.state.step, runs=self.engine.describe(), micro_batch=self.micro_batch))
        for callback in self._callbacks:
            callback.begin(self)
        while self.state.step < self.job.total_steps:
            figures = self._step()
            for callback in self._callbacks:
                callback.after_step(self, figures)
        for callback in self._callbacks:
            callback.end(self)

    def _step(self) -> StepFigures:
        """Forward and backward passes of every micro-batch, then one update of the weights."""
        started, step = time.perf_counter(), self.state.step
        # Drawn anew for every step, so that dropout is the same after a resume.
        torch.manual_seed(hash((self.job.seed, step, self.place.rank)) & 0x7FFFFFFF)
        kd_weight = self._weights.weight(step, self._schedule)
        # Sums over micro-batches and workers: the loss, the weighted cross-entropy and divergence, and the weights.
        sums = torch.zeros(4, dtype=torch.float64, device=self.place.device)
        for batch in self._batches.at(step, self.micro_batch):
            parts = self.engine.backward(self._inputs(batch, kd_weight))
            weight = batch.weights.sum().item()
            sums[0] += parts[0].double()
            for row, part in enumerate(parts[1:], start=1):
                sums[row] += part.double() * weight
            sums[3] += weight
        total = self.place.gathered_sum(sums)
        accumulated = self.place.world * self.engine.settings.accumulation
        loss = (total[0] / accumulated).item()
        ce, kd = (total[1:3] / total[3].clamp_min(1e-9)).tolist()  # documents of one token have no targets
        for callback in self._callbacks:
            callback.before_update(self, loss)
        factor = self._schedule.factor(step)
        norm = self.engine.step(factor)
        self.update(step=step + 1)
        rate = factor * self.job.config.optimizer.rate
        return StepFigures(started, loss, ce, kd if self._signal else None, rate, kd_weight, norm)

    def _inputs(self, batch: MicroBatch, kd_weight: float) -> dict[str, Any]:
        """The arguments of the engine's forward pass."""
        device = self.place.device
        ids = batch.ids.to(device)
        positions = None if batch.positions is None else batch.positions.to(device)
        inputs = {"ids": ids, "positions": positions, "weights": batch.weights.to(device)}
        if self._signal is None or kd_weight == 0:
            return inputs
        return inputs | {"signal": self._signal(batch.indices, ids, positions), "kd_weight": kd_weight}

    @property
    def is_saving_step(self) -> bool:
        """Whether the step that is done is followed by a checkpoint."""
        step = self.state.step
        return step == self.job.total_steps or step % self.job.config.checkpoint_steps == 0

    def update(self, **changes: Any) -> None:
        """Change where the training stands."""
        self.state = self.state.model_copy(update=changes)

    def say(self, event: Event) -> None:
        """Report something, on rank 0."""
        if self.place.rank == 0:
            self._say(event)

    def _choose_micro_batch(self, module: StudentLoss, sequence_length: int) -> int:
        share, wanted = self.job.config.batch_size // self.place.world, self.job.config.batch.micro_batch
        if wanted == AUTO and self.place.device.type == "cuda":
            reserve = STATE_BYTES * sum(parameter.numel() for parameter in module.parameters())
            return find_micro_batch(partial(self._try_batch, module), share, self.place, reserve=reserve)
        return wanted if isinstance(wanted, int) else default_micro_batch(share, sequence_length, self.place)

    def _try_batch(self, module: StudentLoss, size: int) -> None:
        """A forward and backward pass that leaves nothing behind."""
        precision = choose_precision(self.job.config.engine.precision, self.place.device.type)
        batch = next(iter(self._batches.at(self.state.step, size)))
        try:
            with autocast(precision, self.place.device):
                parts = module(**self._inputs(batch, self.job.config.distill.kd_weight))
            parts[0].backward()
        finally:
            module.zero_grad(set_to_none=True)


def build_module(job: TrainJob, place: Place, student: Any) -> StudentLoss:
    """Put a student in place, with its loss around it."""
    check_logits(student, job.name)
    if job.separate:
        check_documents(student, job.name)
    student = student.to(place.device).train()
    config, distill = job.config.engine, job.config.distill
    if config.activation_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    divergence = None
    if job.config.kind != "none":
        divergence = Divergence(name=distill.loss, temperature=distill.temperature)
    return StudentLoss(student, divergence, DTYPES[choose_precision(config.precision, place.device.type)])


def make_signal(job: TrainJob, place: Place) -> Signal | None:
    """The source of the teacher's signal; None trains on the text alone."""
    if job.config.kind == "none":
        return None
    if job.teacher is not None and not job.config.distill.from_store:
        dtype = DTYPES[choose_precision(job.config.engine.precision, place.device.type)]
        teacher = OnlineTeacher(local_copy(Path(job.teacher)), dtype, place.device)
        return lambda _indices, ids, positions: teacher.signal(ids, positions)
    from slm_ray.distill.store import LogitStore

    store = LogitStore.open(local_copy(Path(str(job.store))))

    def read(indices: npt.NDArray[np.int64], _ids: torch.Tensor, _positions: torch.Tensor | None) -> TeacherSignal:
        found: SparseSignal = store.signal(indices, job.config.kind)
        return found.to(place.device)

    return read


def train(job: TrainJob, place: Place, say: Say) -> TrainFailure | None:
    """Train one model, as one of ``place.world`` workers.

    ``place``: Which worker this is; a process group must exist where there are several. Returns why it stopped before
    its end, a sentence for the user; None where it did not. The last checkpoint is whole.
    """
    try:
        Trainer(job, place, say).run()
    except torch.cuda.OutOfMemoryError:
        micro = job.config.batch.micro_batch or "a worker's whole share"
        return TrainFailure(resumable=True, message=(
            f"{job.name}: the GPU's memory is full: give a smaller --micro-batch than {micro}, "
            "--activation-checkpointing, or --zero 2 with more --workers"
        ))  # fmt: skip
    except UserError as error:
        return TrainFailure(resumable=error.is_resumable, message=str(error))
    return None
