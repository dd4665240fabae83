"""The training loop of one worker: a plain function of a job, a rank and a world size.

Ray Train calls it, and so does torchrun, or a single process under a debugger or a profiler.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards
from slm_ray.evaluate.held_out import HeldOutLoss, held_out_loss
from slm_ray.models.loading import load_student
from slm_ray.pretrain.accounting import UsageSampler
from slm_ray.pretrain.batches import Batches, MicroBatch
from slm_ray.pretrain.build import Place, build_engine, build_module, make_signal, resolve_precision
from slm_ray.pretrain.checkpoints import CheckpointFolder
from slm_ray.pretrain.engine import Engine, TrainingState, autocast, gathered_sum
from slm_ray.pretrain.job import AUTO, TrainJob
from slm_ray.pretrain.micro_batch import STATE_BYTES, default_micro_batch, find_micro_batch
from slm_ray.pretrain.module import StudentLoss
from slm_ray.pretrain.schedules import Schedule, WeightSchedule
from slm_ray.pretrain.state_files import copy_static_files, read_state, write_state
from slm_ray.runtime.copies import local_copy
from slm_ray.runtime.energy import EnergyMeter
from slm_ray.runtime.hardware import model_flops_utilization

Say = Callable[[str, dict[str, Any]], None]
_SPIKE_MEMORY = 0.9  # of the running mean loss that spikes are judged by
_SPIKE_AFTER_STEPS = 20


@dataclass
class _Loss:
    """Weighted sums over a step's micro-batches and workers: loss, cross-entropy, divergence, and the weights."""

    total: torch.Tensor

    def add(self, parts: tuple[torch.Tensor, ...], batch: MicroBatch) -> None:
        weight = batch.weights.sum().item()
        kd = parts[2].item() * weight if len(parts) > 2 else 0.0
        self.total += torch.tensor([parts[0].item(), parts[1].item() * weight, kd, weight], dtype=torch.float64)


class Trainer:
    """Trains one model on one worker."""

    def __init__(self, job: TrainJob, place: Place, say: Say) -> None:
        """Load the newest checkpoint, data, teacher and engine.

        Args:
            job: What to train.
            place: Which worker this is, and on which device.
            say: Takes records; called on rank 0 only.

        Raises:
            UserError: Something does not fit together, or is damaged.
        """
        self.job, self.place, self.say = job, place, say
        self.folder = CheckpointFolder(job.storage)
        checkpoint = self.folder.latest()
        if checkpoint is None:
            raise UserError(f"{job.storage} holds no checkpoint to start from: start a new run")
        self._static = tempfile.TemporaryDirectory(prefix="slm_ray-static-")
        with self.folder.open(checkpoint) as folder:
            state, self.trainer = read_state(folder)
            student = load_student(folder, job.name)
            copy_static_files(folder, Path(self._static.name))
        self.shards, self.held_out = (TokenShards.open(local_copy(Path(place))) for place in (job.shards, job.held_out))
        self.separate = job.documents == "separate"
        self.signal = make_signal(job, place, self.shards)
        torch.manual_seed(job.seed)
        module = build_module(job, place, student)
        self.batches = Batches(
            self.shards,
            job.seed,
            job.batch_size,
            separate=self.separate,
            rank=place.rank,
            world=place.world,
            sequences=job.sequences,
        )
        share = job.batch_size // place.world
        if job.micro_batch == AUTO:
            state_bytes = STATE_BYTES * sum(parameter.numel() for parameter in module.parameters())
            self.micro_batch = find_micro_batch(partial(self._try_batch, module), share, place, reserve=state_bytes)
        else:
            self.micro_batch = job.micro_batch or default_micro_batch(share, self.shards.sequence_length, place)
        self.engine: Engine = build_engine(job, place, module, self.micro_batch)
        self.engine.load_optimizer(state)
        warmup = math.ceil(job.option("warmup") * job.schedule_steps)
        self.schedule = Schedule(job.option("schedule"), warmup, job.schedule_steps, job.option("floor"))
        self.weights = WeightSchedule(job.option("kd_schedule"), job.option("kd_weight"))
        self.usage = UsageSampler()

    def _try_batch(self, module: StudentLoss, size: int) -> None:
        """A forward and backward pass that leaves nothing behind."""
        precision = resolve_precision(self.job.option("precision"), self.place.device)
        batch = next(iter(self.batches.at(self.trainer.step, size)))
        try:
            with autocast(precision, self.place.device):
                parts = module(**self._inputs(batch, self.job.option("kd_weight")))
            parts[0].backward()
        finally:
            module.zero_grad(set_to_none=True)

    def run(self) -> None:
        """Train to the end, with evaluations and checkpoints on the way.

        Raises:
            UserError: The loss is no number, or jumped; the last good checkpoint is named.
        """
        self._say("begin", {"step": self.trainer.step, "runs": self.engine.describe(), "micro_batch": self.micro_batch})
        # One worker of each machine counts its processor; every worker counts its own GPU.
        energy, first = EnergyMeter(processor=self.place.rank == 0), self.trainer.step
        energy.start()
        if self.trainer.step == 0:
            self._evaluate()
        while self.trainer.step < self.job.total_steps:
            self._step()
            step, is_last = self.trainer.step, self.trainer.step == self.job.total_steps
            is_saved = is_last or step % self.job.option("checkpoint_steps") == 0
            if is_saved or step % self.job.option("eval_steps") == 0:
                loss = self._evaluate()
            if is_saved:
                self._checkpoint(loss)
        measured = energy.stop()
        self._say("end", {
            **vars(self.trainer), "usage": vars(self.usage.sample()), "mfu": self._utilization(),
            "energy": {"joules": measured.joules, "source": measured.source, "from_step": first},
        })  # fmt: skip

    def _utilization(self) -> float | None:
        """Model FLOPs utilisation over the whole run; None where the device's peak is not known."""
        if self.place.device.type != "cuda":
            return None
        settings, trainer = self.engine.settings, self.trainer
        again = 3 / 4 if self.job.option("activation_checkpointing") else 1.0  # what is computed twice is no use
        name, own = torch.cuda.get_device_name(self.place.device), again * trainer.flops["own"]
        return model_flops_utilization(own, trainer.seconds, name, settings.precision, settings.world)

    def _say(self, kind: str, record: dict[str, Any]) -> None:
        if self.place.rank == 0:
            self.say(kind, record)

    def _inputs(self, batch: MicroBatch, kd_weight: float) -> dict[str, Any]:
        """What the engine's forward pass takes."""
        device = self.place.device
        ids = batch.ids.to(device)
        positions = None if batch.positions is None else batch.positions.to(device)
        inputs = {"ids": ids, "positions": positions, "weights": batch.weights.to(device)}
        if self.signal is None or kd_weight == 0:
            return inputs
        return inputs | {"signal": self.signal(batch.indices, ids, positions), "kd_weight": kd_weight}

    def _step(self) -> None:
        start, step = time.perf_counter(), self.trainer.step
        # Drawn anew for every step, so that dropout is the same after a resume.
        torch.manual_seed(hash((self.job.seed, step, self.place.rank)) & 0x7FFFFFFF)
        kd_weight = self.weights.weight(step, self.schedule)
        sums = _Loss(torch.zeros(4, dtype=torch.float64))
        for batch in self.batches.at(step, self.micro_batch):
            sums.add(self.engine.backward(self._inputs(batch, kd_weight)), batch)
        total = gathered_sum(sums.total, self.engine.settings)
        accumulated = self.place.world * (self.job.batch_size // self.place.world // self.micro_batch)
        loss = (total[0] / accumulated).item()
        ce, kd = (total[1:3] / total[3].clamp_min(1e-9)).tolist()  # nothing is predicted where documents have one token
        self._check_loss(loss, step)
        factor = self.schedule.factor(step)
        norm = self.engine.step(factor)
        if not math.isfinite(norm) and self.engine.settings.precision != "fp16":  # fp16 skips such a step
            raise self._stopped(f"has a gradient of {norm}", step + 1)
        self._account(time.perf_counter() - start)
        rate = factor * self.job.option("learning_rate")
        record = {"loss": loss, "ce": ce, "kd": kd if self.signal else None, "lr": rate, "kd_weight": kd_weight}
        self._report(record | {"grad_norm": norm if math.isfinite(norm) else None}, start)

    def _check_loss(self, loss: float, step: int) -> None:
        """Stop before the weights are touched when the loss is no number or jumped."""
        trainer, limit = self.trainer, self.job.option("spike")
        jumped = limit and step >= _SPIKE_AFTER_STEPS and trainer.recent is not None and loss > trainer.recent + limit
        if not math.isfinite(loss) or jumped:
            what = f"jumped from {trainer.recent:.3f} to {loss:.3f}" if jumped else f"is {loss}"
            raise self._stopped(what, step + 1)
        before = loss if trainer.recent is None else trainer.recent
        trainer.recent = _SPIKE_MEMORY * before + (1 - _SPIKE_MEMORY) * loss

    def _stopped(self, what: str, step: int) -> UserError:
        """Why training ends early. Whatever was saved before is good: a checkpoint's own loss was looked at first."""
        good = self.folder.latest()
        return UserError(
            f"{self.job.name}: the loss {what} at step {step}; the last good checkpoint is "
            f"{good.name if good else 'none'} in {self.job.storage}: give a lower --learning-rate than "
            f"{self.job.option('learning_rate'):g}, or a longer --warmup"
        )

    def _account(self, seconds: float) -> None:
        trainer, flops = self.trainer, self.job.flops
        tokens = self.job.batch_size * self.shards.sequence_length
        trainer.step += 1
        trainer.tokens += tokens
        trainer.seconds += seconds
        for name in ("own", "teacher"):
            trainer.flops[name] += tokens * flops[name]
        trainer.flops["capture"] = flops["capture"]

    def _report(self, record: dict[str, Any], start: float) -> None:
        if self.place.rank:
            return
        seconds, usage = time.perf_counter() - start, self.usage.sample()
        tokens = self.job.batch_size * self.shards.sequence_length
        self.say("step", {
            "step": self.trainer.step, "tokens": self.trainer.tokens, **record, "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1), "flops": dict(self.trainer.flops), **vars(usage),
        })  # fmt: skip

    def _evaluate(self) -> float:
        """Measure and record the held-out loss."""
        place = self.place
        self.engine.module.eval()
        found: HeldOutLoss = held_out_loss(
            self.engine.losses, self.held_out, separate=self.separate, batch=self.micro_batch, device=place.device,
            rank=place.rank, world=place.world, reduce=lambda value: gathered_sum(value, self.engine.settings),
        )  # fmt: skip
        self.engine.module.train()
        trainer = self.trainer
        if math.isfinite(found.loss) and (trainer.best is None or found.loss < trainer.best["loss"]):
            trainer.best = {"step": trainer.step, "loss": found.loss}
        self._say("eval", {
            "step": trainer.step, "tokens": trainer.tokens, "loss": found.loss if math.isfinite(found.loss) else None,
            "stderr": found.stderr if math.isfinite(found.stderr) else None, "bits_per_byte": found.bits_per_byte
            if math.isfinite(found.bits_per_byte) else None, "eval_tokens": found.tokens, "flops": dict(trainer.flops),
            "seconds": round(trainer.seconds, 3),
        })  # fmt: skip
        return found.loss

    def _checkpoint(self, loss: float) -> None:
        """Save, unless the weights were spoilt by the last steps; ``loss`` is what they make of the held-out tokens."""
        limit, best = self.job.option("spike"), self.trainer.best
        if not math.isfinite(loss):
            raise self._stopped(f"on held-out tokens is {loss}", self.trainer.step)
        if limit and best is not None and loss > best["loss"] + limit:
            what = f"on held-out tokens is {loss:.3f}, and was {best['loss']:.3f} at step {best['step']},"
            raise self._stopped(what, self.trainer.step)
        state = self.engine.state()
        told: list[str | None] = [None]
        if self.place.rank == 0:
            try:
                self._save(state, loss)
            except UserError as error:
                told = [str(error)]
        if self.place.world > 1:  # all stop if the first one could not save; and none goes on before it has
            dist.broadcast_object_list(told, src=0, device=self.place.device)
        if told[0] is not None:
            raise UserError(told[0])

    def _save(self, state: TrainingState, loss: float) -> None:
        self.say("flush", {})
        info = {"tokens": self.trainer.tokens, "loss": loss, "architecture": self.job.option("architecture_digest")}
        self.folder.save(self.trainer.step, partial(self._write, state), info)
        losses = {saved.step: saved.info["loss"] for saved in self.folder.all() if "loss" in saved.info}
        self.folder.prune(self.job.option("keep_last"), min(losses, key=lambda step: losses[step]))
        self.say("checkpoint", {"step": self.trainer.step})

    def _write(self, state: TrainingState, folder: Path) -> None:
        write_state(folder, Path(self._static.name), state, self.trainer)


def train(job: TrainJob, place: Place, say: Say) -> None:
    """Train one model, as one of ``place.world`` workers.

    Args:
        job: What to train, and where its checkpoints are.
        place: Which worker this is; a process group must exist where there are several.
        say: Takes records on rank 0: ``begin``, ``step``, ``eval``, ``checkpoint``, ``end``.

    Raises:
        UserError: Something the user can fix; the last checkpoint is intact.
    """
    try:
        Trainer(job, place, say).run()
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"{job.name}: the GPU's memory is full: give a smaller --micro-batch than {job.micro_batch}, "
            "--activation-checkpointing, or --zero 2 with more --workers"
        ) from error
