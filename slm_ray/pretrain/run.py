"""Pretraining from its options to its run folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.models.scratch import build_scratch
from slm_ray.models.starts import build_start
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.first_checkpoint import write_first_checkpoint
from slm_ray.pretrain.inputs import (
    PretrainInputs,
    Student,
    check_students,
    keep_digests,
    prepare_inputs,
)
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.launch import Resources, RunHere, local_workers, run_on_ray
from slm_ray.pretrain.lineage import ORIGIN, origin_of
from slm_ray.pretrain.results import finish_model, finish_run
from slm_ray.pretrain.tracking import ModelTracking
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import read_json, write_json
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.remote import below, is_address
from slm_ray.runtime.room import cluster_room
from slm_ray.runtime.runfolder import LOG_FILE, RunFolder
from slm_ray.runtime.session import ray_session

MODEL_FILE = "model.json"
RESULT_FILE = "result.json"
CHECKPOINTS = "checkpoints"


class PretrainRun:
    """One command's worth of training: several models, one after the other or at once."""

    def __init__(self, config: PretrainConfig, folder: RunFolder, command: str) -> None:
        """Prepare a run in an open folder.

        Args:
            config: The options.
            folder: Where everything goes.
            command: The command line, for the record.
        """
        self.config, self.folder, self.command = config, folder, command
        self.console = Console(folder.file(LOG_FILE))
        self._run_here: RunHere

    def execute(self) -> None:
        """Train every model and leave a finished run folder.

        Raises:
            UserError: Something the user can fix went wrong; what was finished is kept.
        """
        self.console.line(f"run folder: {self.folder.path}")
        check_students(self.config)
        with self._ray():
            inputs = prepare_inputs(self.config, self.folder, self.console, usable_cpus())
            keep_digests(self.folder, inputs)
            self._say_inputs(inputs)
            jobs = self._jobs(inputs)
            self._train(jobs)
        results = [finish_model(self.folder.path / job.name, job, self.folder.path) for job in jobs]
        finish_run(self.config, self.folder.path, results, self.command, self.console)

    @contextlib.contextmanager
    def _ray(self) -> Iterator[None]:
        if self.config.launcher == "local":
            if self.config.shards is None:
                raise UserError(
                    "--launcher local runs without Ray, which prepares the tokens: give --shards FOLDER, prepared by "
                    "an earlier run"
                )
            with local_workers(self.config) as self._run_here:
                yield
            return
        with ray_session(self.config.address, usable_cpus()):
            yield

    def _say_inputs(self, inputs: PretrainInputs) -> None:
        shards, wanted = inputs.shards, self.config.num_tokens()
        part = self.config.data_sequences()
        different = shards.num_tokens if part is None else min(part * shards.sequence_length, shards.num_tokens)
        epochs = wanted / different
        teacher = f"teacher {inputs.teacher.name}, " if inputs.teacher else ""
        again = f", read {epochs:.1f} times" if epochs > 1.05 else ""
        self.console.line(f"{teacher}{format_count(different)} training tokens of {shards.corpus}{again}")

    def _jobs(self, inputs: PretrainInputs) -> list[TrainJob]:
        jobs = []
        for student in inputs.students:
            for start in self.config.starts():
                for seed in self.config.seeds():
                    jobs.append(self._job(inputs, student, start, seed))
        return jobs

    def _job(self, inputs: PretrainInputs, student: Student, start: str, seed: int) -> TrainJob:
        """One model's job; its start is written as its first checkpoint, if that is not there yet."""
        name = ".".join([student.label, start, *([f"seed{seed}"] if len(self.config.seeds()) > 1 else [])])
        folder = self.folder.path / name
        storage = self._storage(name)
        if not (folder / MODEL_FILE).exists():
            self._write_start(inputs, student, start, seed, folder, storage)
        model, config = read_json(folder / MODEL_FILE), student.config(self.config)
        return make_job(config, inputs, name, storage, seed, model, config.total_steps())

    def _storage(self, name: str) -> str:
        if self.config.storage is None:
            return str((self.folder.path / name / CHECKPOINTS).resolve())
        storage = self.config.storage
        place = storage if is_address(storage) else str(Path(storage).expanduser().resolve())
        return below(place, f"{self.folder.path.resolve().name}/{name}")

    def _write_start(
        self, inputs: PretrainInputs, student: Student, start: str, seed: int, folder: Path, storage: str
    ) -> None:
        scratch = student.scratch
        if scratch:
            model = build_scratch(scratch.architecture, scratch.positions, seed, student.tokenizer)
        else:
            model = build_start(start, student.source, student.label, seed, inputs.teacher)
        describe = write_first_checkpoint(model, student.tokenizer, self.config.sequence_length, storage, student.label)
        # A student's weights come from the search; of the other starts none was searched for.
        searched = student.search_flops if start == "student" else 0.0
        folder.mkdir(parents=True, exist_ok=True)
        origin = {ORIGIN: origin_of(student, start, inputs, self.config.distill)}
        known: dict[str, Any] = {"start": start, "source": student.source, "search_flops": searched}
        known |= {"scratch": scratch.describe()} if scratch else {}
        write_json(folder / MODEL_FILE, describe | known | origin)

    def _train(self, jobs: list[TrainJob]) -> None:
        left = [job for job in jobs if not (self.folder.path / job.name / RESULT_FILE).exists()]
        if not left:
            return
        folders = [self.folder.path / job.name for job in left]
        watch = Watcher(self.console, left, {job.name: ModelTracking(own_config(self.config, job),
                                             self.folder.path / job.name, self.console) for job in left})  # fmt: skip
        try:
            if self.config.launcher == "local":
                statuses = self._run_here(left, folders, watch)
            else:
                resources = resources_of(self.config, len(left))
                statuses = run_on_ray(left, folders, resources, self.config.concurrent, watch)
        finally:
            watch.close()
        watch.finish()
        for folder, job in zip(folders, left, strict=True):
            write_json(folder / "status.json", statuses[job.name])


def own_config(config: PretrainConfig, job: TrainJob) -> PretrainConfig:
    """A run's options with the batch and rate that one of its models is trained with."""
    return dataclasses.replace(config, batch_size=job.batch_size, learning_rate=job.option("learning_rate"))


def resources_of(config: PretrainConfig, num_jobs: int) -> Resources:
    """What each of several models takes of the cluster that Ray is connected to.

    Raises:
        UserError: A GPU is asked for, and there is none.
    """
    use_gpu = config.device != "cpu" and cluster_room().get("GPU", 0) > 0
    if config.device == "cuda" and not use_gpu:
        raise UserError("--device cuda is given, but the cluster has no GPU: give --device cpu, or add a GPU node")
    at_once = min(num_jobs, config.concurrent or num_jobs)
    threads = config.threads or max(1, usable_cpus() // (config.workers * at_once))
    return Resources(config.workers, threads, use_gpu, config.min_workers)


def make_job(
    config: PretrainConfig, inputs: PretrainInputs, name: str, storage: str, seed: int, model: dict[str, Any],
    steps: int,
) -> TrainJob:  # fmt: skip
    """The job of a model whose first checkpoint is written.

    Args:
        config: The options.
        inputs: What is read.
        name: The model's name within the run.
        storage: Where its checkpoints are.
        seed: Of the order of sequences, and of dropout.
        model: What :func:`write_first_checkpoint` said of it.
        steps: Optimiser steps to train.
    """
    return TrainJob(
        name=name, storage=storage, seed=seed, total_steps=steps, schedule_steps=steps,
        batch_size=config.batch_size, micro_batch=config.micro_batch_size(), shards=str(inputs.shards.folder),
        sequences=config.data_sequences(), documents=config.documents, held_out=str(inputs.held_out.folder),
        teacher=str(inputs.teacher.folder) if inputs.teacher else None,
        store=str(Path(config.store).expanduser().resolve()) if config.store else None, distill=config.distill,
        flops=step_flops(config, inputs, model), options=job_options(config, model),
    )  # fmt: skip


def step_flops(config: PretrainConfig, inputs: PretrainInputs, model: dict[str, Any]) -> dict[str, float]:
    """FLOPs of one trained token, the student's own and the teacher's; and those of the whole capture of a store."""
    teacher = 0.0
    if inputs.teacher is not None and config.distill == "full":
        teacher = float(flops_per_token(inputs.teacher.architecture(), config.sequence_length))
    passes = 4 if config.activation_checkpointing else 3
    return {"own": passes * model["flops_per_token"], "teacher": teacher, "capture": inputs.capture_flops}


_JOB_OPTIONS = (
    "loss", "temperature", "kd_weight", "kd_schedule", "optimizer", "learning_rate", "schedule", "warmup", "floor",
    "weight_decay", "beta1", "beta2", "clip", "precision", "engine", "zero", "offload", "activation_checkpointing",
    "keep_last", "spike",
)  # fmt: skip


def job_options(config: PretrainConfig, model: dict[str, Any]) -> dict[str, Any]:
    """The options that a worker reads by name."""
    options = {name: getattr(config, name) for name in _JOB_OPTIONS}
    return options | {
        "eval_steps": config.every_steps("eval_every"),
        "checkpoint_steps": config.every_steps("checkpoint_every"),
        "architecture_digest": digest_json(model["architecture"]),
    }


class Watcher:
    """Shows how all models get on, as one phase with an estimate of the time left."""

    def __init__(self, console: Console, jobs: list[TrainJob], tracking: dict[str, ModelTracking]) -> None:
        """Start the phase."""
        self._tracking = tracking
        self._steps = dict.fromkeys((job.name for job in jobs), 0)
        self._progress = Progress(console, "training", sum(job.total_steps for job in jobs), "steps")

    def __call__(self, name: str, status: dict[str, Any]) -> None:
        """Take one model's status."""
        self._steps[name] = status["step"]
        now = f"loss {status['loss']:.3f}" if status.get("loss") is not None else status.get("note") or "is starting"
        self._progress.update(sum(self._steps.values()), f"{name} {now}")
        self._tracking[name].update()

    def close(self) -> None:
        """Close what models are tracked with, all at once."""
        for tracking in self._tracking.values():
            tracking.end()
        for tracking in self._tracking.values():
            tracking.finish()

    def finish(self) -> None:
        """End the phase."""
        self._progress.finish(f"{sum(self._steps.values()):,} steps")
