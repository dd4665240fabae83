"""What happens around a training's steps: accounts, evaluations, checkpoints, and the guard against divergence.

The loop calls every callback at its begin, before an update of the weights, after a step, and at its end; the order of
``default_callbacks`` is the order of their effects within a step.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
import torch.distributed as dist

from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards
from slm_ray.evaluate.held_out import HeldOutLoss, held_out_loss
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.engine import Engine, Place
from slm_ray.pretrain.job import Event, Saving, TrainJob
from slm_ray.pretrain.state import TrainerState, TrainingState, write_state
from slm_ray.records.training import (
    BestEvaluation,
    MeasuredEnergy,
    ResourceUsage,
    SpentFlops,
    TrainEnd,
    TrainEvaluation,
    TrainStep,
)
from slm_ray.runtime.energy import Energy, EnergyMeter
from slm_ray.runtime.hardware import model_flops_utilization, peak_memory_bytes

_SPIKE_MEMORY = 0.9  # of the running mean loss that spikes are judged by
_SPIKE_AFTER_STEPS = 20


@dataclass(frozen=True)
class StepFigures:
    """What a step computed."""

    started: float  # When, by ``time.perf_counter``
    loss: float  # The training loss in nats per token, cross-entropy and divergence weighted
    ce: float  # The mean cross-entropy
    kd: float | None  # The mean divergence; None without a teacher
    lr: float  # The learning rate
    kd_weight: float  # Weight of the divergence
    grad_norm: float  # Norm before clipping


class Training(Protocol):
    """What callbacks see of the :class:`slm_ray.pretrain.trainer.Trainer`."""

    job: TrainJob
    place: Place
    state: TrainerState
    folder: CheckpointFolder
    static: Path
    held_out: TokenShards
    engine: Engine
    micro_batch: int

    @property
    def is_saving_step(self) -> bool:
        """Whether the step that is done is followed by a checkpoint."""

    def update(self, **changes: Any) -> None:
        """Change where the training stands."""

    def say(self, event: Event) -> None:
        """Report something, on rank 0."""


class Callback:
    """Does nothing; subclasses override what they need. All workers call all of them, in the same order."""

    def begin(self, trainer: Training) -> None:
        """The training begins, at ``trainer.state.step``."""

    def before_update(self, trainer: Training, loss: float) -> None:
        """The loss of a step is known, and the weights are still as they were."""

    def after_step(self, trainer: Training, figures: StepFigures) -> None:
        """A step is done; ``trainer.state.step`` is its number, counted from 1."""

    def end(self, trainer: Training) -> None:
        """The last step is done."""


def default_callbacks() -> list[Callback]:
    """Those of a training."""
    evaluate = Evaluate()
    return [Guard(), Account(), evaluate, SaveCheckpoint(evaluate)]


def stopped(trainer: Training, what: str, step: int) -> UserError:
    """Why a training ends early. Checkpoints are good: the loss of each was checked before it was saved."""
    good, rate = trainer.folder.latest(), trainer.job.config.optimizer.rate
    return UserError(
        f"{trainer.job.name}: the loss {what} at step {step}; the last good checkpoint is "
        f"{good.name if good else 'none'} in {trainer.job.storage}: start a new run with a lower --learning-rate than "
        f"{rate:g}, or a longer --warmup"
    )


class Guard(Callback):
    """Stops a training whose loss or gradient is not finite, or whose loss jumped."""

    def before_update(self, trainer: Training, loss: float) -> None:
        """Compare the loss with the mean of recent steps."""
        recent, step, limit = trainer.state.recent, trainer.state.step, trainer.job.config.checkpoint.spike
        if not math.isfinite(loss):
            raise stopped(trainer, f"is {loss}", step + 1)
        if limit and step >= _SPIKE_AFTER_STEPS and recent is not None and loss > recent + limit:
            raise stopped(trainer, f"jumped from {recent:.3f} to {loss:.3f}", step + 1)
        before = loss if recent is None else recent
        trainer.update(recent=_SPIKE_MEMORY * before + (1 - _SPIKE_MEMORY) * loss)

    def after_step(self, trainer: Training, figures: StepFigures) -> None:
        """Look at the gradient's norm."""
        if not math.isfinite(figures.grad_norm) and trainer.engine.settings.precision != "fp16":
            raise stopped(trainer, f"has a gradient of {figures.grad_norm}", trainer.state.step)


class Account(Callback):
    """Counts tokens, FLOPs, time, memory and energy, and reports every step."""

    def begin(self, trainer: Training) -> None:
        """Start the meters."""
        self._usage, self._first = UsageSampler(), trainer.state.step
        is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0  # it measures its machine, all GPUs included
        self._energy = EnergyMeter() if is_first else None
        if self._energy is not None:
            self._energy.start()

    def after_step(self, trainer: Training, figures: StepFigures) -> None:
        """Count and report a step."""
        state, job, tokens = trainer.state, trainer.job, trainer.job.step_tokens
        flops = SpentFlops(
            own=state.flops.own + tokens * job.flops.own, teacher=state.flops.teacher + tokens * job.flops.teacher,
            capture=job.flops.capture,
        )  # fmt: skip
        seconds = time.perf_counter() - figures.started
        trainer.update(tokens=state.tokens + tokens, seconds=state.seconds + seconds, flops=flops)
        if trainer.place.rank:
            return
        trainer.say(TrainStep(
            step=state.step, tokens=trainer.state.tokens, loss=figures.loss, ce=figures.ce, kd=figures.kd,
            lr=figures.lr, kd_weight=figures.kd_weight, seconds=round(seconds, 4), flops=flops,
            grad_norm=figures.grad_norm if math.isfinite(figures.grad_norm) else None,
            tokens_per_second=round(tokens / seconds, 1), **self._usage.sample().to_json(),
        ))  # fmt: skip

    def end(self, trainer: Training) -> None:
        """Stop the meters and report what the training came to."""
        measured, state = self._measured(trainer), trainer.state
        trainer.say(TrainEnd(
            step=state.step, tokens=state.tokens, flops=state.flops, seconds=state.seconds, best=state.best,
            usage=self._usage.sample(), mfu=_utilization(trainer),
            energy=MeasuredEnergy(joules=measured.joules, source=measured.source, from_step=self._first),
        ))  # fmt: skip

    def _measured(self, trainer: Training) -> Energy:
        """The energy of all machines; those that have no counter are named."""
        here = self._energy.stop() if self._energy is not None else Energy(None, "measured by another worker")
        known = [float(self._energy is not None), float(here.joules is not None), here.joules or 0.0]
        machines, counted, joules = trainer.place.gathered_sum(torch.tensor(known, dtype=torch.float64)).tolist()
        if machines == 1 or not counted:
            return here
        missing = f"; {machines - counted:.0f} of {machines:.0f} machines have no counter" if counted < machines else ""
        return Energy(joules, (here.source if here.joules is not None else "measured") + missing)


def _utilization(trainer: Training) -> float | None:
    """Model FLOPs utilisation over the whole run; None where the device's peak is not known."""
    if trainer.place.device.type != "cuda":
        return None
    settings, state = trainer.engine.settings, trainer.state
    useful = 3 / 4 if trainer.job.config.engine.activation_checkpointing else 1.0  # recomputed passes are not useful
    name = torch.cuda.get_device_name(trainer.place.device)
    return model_flops_utilization(useful * state.flops.own, state.seconds, name, settings.precision, settings.world)


class UsageSampler:
    """Samples what this process uses."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the next one is since this one

    def sample(self) -> ResourceUsage:
        """Use since the last sample (the first: since the sampler was made)."""
        cuda = torch.cuda.is_available()
        return ResourceUsage(
            cpu_percent=self._process.cpu_percent(), gpu_percent=_gpu_percent() if cuda else None,
            memory_bytes=peak_memory_bytes(), gpu_memory_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        )  # fmt: skip


def _gpu_percent() -> float | None:
    try:
        return float(torch.cuda.utilization())
    except Exception:  # no NVML bindings, or an error of NVML's own: a cut-up or virtual GPU does not say
        return None


class Evaluate(Callback):
    """Measures the held-out loss before the first step, every ``--eval-every`` tokens, and before every checkpoint.

    Attributes:
        loss: The last loss: nats per token
    """

    loss = math.nan

    def begin(self, trainer: Training) -> None:
        """Measure the start."""
        if trainer.state.step == 0:
            self._measure(trainer)

    def after_step(self, trainer: Training, figures: StepFigures) -> None:
        """Measure where it is time to."""
        if trainer.is_saving_step or trainer.state.step % trainer.job.config.eval_steps == 0:
            self._measure(trainer)

    def _measure(self, trainer: Training) -> None:
        place, engine = trainer.place, trainer.engine
        engine.module.eval()
        found: HeldOutLoss = held_out_loss(
            engine.losses, trainer.held_out, separate=trainer.job.separate, batch=trainer.micro_batch,
            device=place.device, rank=place.rank, world=place.world, reduce=place.gathered_sum,
        )  # fmt: skip
        engine.module.train()
        self.loss = found.loss
        state = trainer.state
        if math.isfinite(found.loss) and (state.best is None or found.loss < state.best.loss):
            trainer.update(best=BestEvaluation(step=state.step, loss=found.loss))
        trainer.say(TrainEvaluation(
            step=state.step, tokens=state.tokens, loss=_finite(found.loss), stderr=_finite(found.stderr),
            bits_per_byte=_finite(found.bits_per_byte), eval_tokens=found.tokens, flops=state.flops,
            seconds=round(state.seconds, 3),
        ))  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class SaveCheckpoint(Callback):
    """Saves the whole state every ``--checkpoint-every`` tokens and at the end, unless the last steps spoilt it."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate

    def after_step(self, trainer: Training, figures: StepFigures) -> None:
        """Save where it is time to."""
        if not trainer.is_saving_step:
            return
        loss, best, limit = self._evaluate.loss, trainer.state.best, trainer.job.config.checkpoint.spike
        if not math.isfinite(loss):
            raise stopped(trainer, f"on held-out tokens is {loss}", trainer.state.step)
        if limit and best is not None and loss > best.loss + limit:
            what = f"on held-out tokens is {loss:.3f}, and was {best.loss:.3f} at step {best.step},"
            raise stopped(trainer, what, trainer.state.step)
        state = trainer.engine.state()
        told: list[str | None] = [None]
        if trainer.place.rank == 0:
            try:
                self._save(trainer, state, loss)
            except UserError as error:
                told = [str(error)]
        if trainer.place.world > 1:  # all stop if the first one could not save; and none goes on before it has
            dist.broadcast_object_list(told, src=0, device=trainer.place.device)
        if told[0] is not None:
            raise UserError(told[0], is_resumable=True)

    def _save(self, trainer: Training, state: TrainingState, loss: float) -> None:
        step, folder = trainer.state.step, trainer.folder
        trainer.say(Saving(step=step))
        info = {"tokens": trainer.state.tokens, "loss": loss, "architecture": trainer.job.architecture}
        folder.save(step, lambda place: write_state(place, trainer.static, state, trainer.state), info)
        losses = {saved.step: saved.info["loss"] for saved in folder.all() if "loss" in saved.info}
        folder.prune(trainer.job.config.checkpoint.keep_last, min(losses, key=lambda at: losses[at]))
