"""Pretraining from its options to its run folder; and the pieces with which a search trains candidates for a moment.

A caller with models of its own writes each one's start (:func:`start_model`), makes its job (:func:`make_job`), and
trains them (:func:`train_jobs`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.models.families import config_architecture
from slm_ray.models.scratch import build_scratch
from slm_ray.models.starts import build_start
from slm_ray.models.teachers import Teacher
from slm_ray.pretrain.components import SCRATCH
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.forecast import own_type, training_flops
from slm_ray.pretrain.inputs import (
    PretrainInputs,
    Student,
    check_positions,
    check_students,
    load_models,
    prepare_inputs,
    store_folder,
)
from slm_ray.pretrain.job import Figures, TrainJob, Watch
from slm_ray.pretrain.launch import Resources, RunHere, local_workers, resources_of, run_on_ray
from slm_ray.pretrain.lineage import origin_of
from slm_ray.pretrain.results import comparison_lines, failed_models, finish_model, finish_run, print_table
from slm_ray.pretrain.state import Tensors, write_first_checkpoint
from slm_ray.pretrain.tracking import ModelTracking, track_results
from slm_ray.records.base import read_record, write_record
from slm_ray.records.cost import flops_per_token
from slm_ray.records.run import RunRecord, keep_unchanged
from slm_ray.records.training import (
    CHECKPOINTS_FOLDER,
    HELD_OUT_FOLDER,
    TOKENIZER_FOLDER,
    ModelResult,
    Origin,
    ScratchFacts,
    SpentFlops,
    TrainedModel,
    TrainFailure,
    TrainStatus,
)
from slm_ray.report.training_report import build_training_report
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.room import cluster_room
from slm_ray.runtime.runfolder import LOG_FILE, RunFolder
from slm_ray.runtime.session import ray_session
from slm_ray.runtime.storage import below, storage_for_workers


class PretrainRun:
    """One command's worth of training: several models, one after the other or at once."""

    def __init__(self, config: PretrainConfig, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.command = read_record(folder.path, RunRecord).command
        self.console = Console(folder.file(LOG_FILE))
        self._run_here: RunHere | None = None

    def execute(self) -> None:
        """Train every model and leave a finished run folder."""
        self.console.line(f"run folder: {self.folder.path}")
        check_students(self.config)
        teacher, students = load_models(self.config, self.folder.path, self.console)
        with self._workers():
            inputs = self._prepare(teacher, students)
            jobs = [
                self._job(inputs, student, start, seed)
                for student in inputs.students
                for start in self.config.model.starts
                for seed in self.config.batch.seed
            ]
            failures = self._train(jobs)
        results = [finish_model(self.folder.path / job.name, job, self.command) for job in jobs]
        lines = comparison_lines(results)
        if failures:
            print_table(self.folder.path, lines)
            print("\n".join(lines))
            build_training_report(self.folder.path)
            track_results(self.config, self.folder.path, self.console)
            raise failed_models(results, failures)
        finish_run(self.config, self.folder.path, results, self.command, self.console, lines)

    @contextlib.contextmanager
    def _workers(self) -> Iterator[None]:
        """Have workers to train with inside the block: on Ray, or this process (with torchrun's others)."""
        run = self.config.run
        if run.launcher == "local":
            with local_workers(self.config) as self._run_here:
                yield
            return
        with ray_session(run.address, usable_cpus(), run.storage):
            resources_of(self.config, 1).how_many_fit(cluster_room())  # before anything is prepared
            yield

    def _prepare(self, teacher: Teacher | None, students: tuple[Student, ...]) -> PretrainInputs:
        try:
            inputs = prepare_inputs(self.config, teacher, students, self.folder.path, self.console)
        except UserError:
            for name in (HELD_OUT_FOLDER, TOKENIZER_FOLDER) if not self.folder.begun else ():
                shutil.rmtree(self.folder.file(name), ignore_errors=True)
            raise
        self.folder.begin()
        keep_unchanged(self.folder.path, inputs.digests())
        shards, part = inputs.shards, inputs.sequences(self.config.data_sequences)
        different = shards.num_tokens if part is None else min(part * shards.sequence_length, shards.num_tokens)
        epochs = self.config.num_tokens / different
        named = f"teacher {inputs.teacher.name}, " if inputs.teacher else ""
        again = f", {epochs:.1f} epochs" if epochs > 1.05 else ""
        self.console.line(f"{named}{format_count(different)} training tokens of {shards.corpus}{again}")
        return inputs

    def _job(self, inputs: PretrainInputs, student: Student, start: str, seed: int) -> TrainJob:
        """One model's job; its start is written as its first checkpoint, if that is not there yet."""
        name = ".".join([student.label, start, *([f"seed{seed}"] if len(self.config.batch.seed) > 1 else [])])
        folder, storage = self.folder.path / name, self.storage_of(name)
        if not (folder / TrainedModel.FILE).exists():
            scratch = student.scratch
            model = (
                build_scratch(scratch.architecture, scratch.positions, seed, student.tokenizer)
                if scratch
                else build_start(start, student.source, student.label, seed, inputs.teacher)
            )
            start_model(
                folder, storage, model, student.tokenizer, self.config.data.sequence_length, start=start,
                source=student.source, name=student.label,
                # A student's weights come from the search; no other start was searched for.
                search_flops=student.search_flops if start == "student" else 0.0,
                origin=origin_of(student, start, inputs, self.config.kind),
                scratch=scratch.facts() if scratch else None,
                dtype="fp32" if start == SCRATCH else own_type(student.source),
            )  # fmt: skip
        return make_job(student.config(self.config), inputs, folder, storage, seed)

    def storage_of(self, name: str) -> str:
        """Where a model's checkpoints are."""
        storage = storage_for_workers(self.config.run.storage, self.config.run.address)
        if storage is None:
            return str((self.folder.path / name / CHECKPOINTS_FOLDER).resolve())
        return below(storage, f"{self.folder.path.resolve().name}/{name}")

    def _train(self, jobs: Sequence[TrainJob]) -> dict[str, TrainFailure]:
        """Train the models that are not finished; returns name to failure."""
        left = [job for job in jobs if not (self.folder.path / job.name / ModelResult.FILE).exists()]
        if not left:
            return {}
        folders = [self.folder.path / job.name for job in left]
        tracking = {job.name: ModelTracking(job.config, self.folder.path / job.name, self.console) for job in left}
        watch = Watcher(self.console, left, tracking)
        try:
            statuses = train_jobs(self.config, left, folders, watch, self._run_here)
        finally:
            watch.close()
        watch.finish()
        for folder, job in zip(folders, left, strict=True):
            write_record(folder, statuses[job.name])
        return {name: status.failure for name, status in statuses.items() if status.failure}


def start_model(
    folder: Path, storage: str, model: Any, tokenizer: Any, sequence_length: int, *, start: str, source: str,
    name: str, origin: Origin, search_flops: float | None = 0.0, scratch: ScratchFacts | None = None,
    grown_from: str | None = None, optimizer: dict[str, Tensors] | None = None, dtype: str = "fp32",
) -> TrainedModel:  # fmt: skip
    """Write a model's start as its first checkpoint, and describe it in its folder.

    ``sequence_length``: The context at which FLOPs are counted. ``search_flops``: What the search that found it cost;
    None where that is not known.
    """
    check_positions(model.config, name, sequence_length)
    write_first_checkpoint(model, tokenizer, storage, optimizer)
    sizes = config_architecture(model.config)
    params = sum(parameter.numel() for parameter in model.parameters())
    described = TrainedModel(
        start=start, source=source, params=params, dtype=dtype, flops_exact=sizes is not None, architecture=sizes,
        flops_per_token=float(flops_per_token(sizes, sequence_length)) if sizes else 2.0 * params,
        search_flops=search_flops, scratch=scratch, grown_from=grown_from, origin=origin,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, described)
    return described


def make_job(
    config: PretrainConfig, inputs: PretrainInputs, folder: Path, storage: str, seed: int, name: str = ""
) -> TrainJob:
    """The job of a model whose start is written.

    ``name``: Its name; its folder's by default.
    """
    model, teacher = read_record(folder, TrainedModel), inputs.teacher
    is_online = teacher is not None and config.kind == "full"
    flops = SpentFlops(
        own=training_flops(model.flops_per_token, config),
        teacher=float(flops_per_token(teacher.architecture(), config.data.sequence_length))
        if teacher and is_online else 0.0,
        capture=inputs.capture_flops,
    )  # fmt: skip
    return TrainJob(
        name=name or folder.name, storage=storage, seed=seed, config=config, total_steps=config.total_steps,
        schedule_steps=config.total_steps, shards=str(inputs.shards.folder),
        sequences=inputs.sequences(config.data_sequences), held_out=str(inputs.held_out.folder),
        teacher=str(teacher.folder) if teacher else None, flops=flops,
        store=str(store_folder(config)) if config.distill.store else None,
        architecture=digest_json(model.architecture.to_json() if model.architecture else None),
    )  # fmt: skip


def train_jobs(
    config: PretrainConfig, jobs: Sequence[TrainJob], folders: Sequence[Path], watch: Watch,
    run_here: RunHere | None = None, resources: Resources | None = None,
) -> dict[str, TrainStatus]:  # fmt: skip
    """Train models, as many at once as fit; Ray must run, unless ``run_here`` is given.

    ``resources``: What each model takes; by default what ``config`` says.
    """
    if run_here is not None:
        return run_here(jobs, folders, watch)
    resources = resources or resources_of(config, len(jobs))
    return run_on_ray(jobs, folders, resources, config.run.concurrent, watch)


class Watcher:
    """Shows the progress of all models as one phase, with an estimate of the time left."""

    def __init__(self, console: Console, jobs: Sequence[TrainJob], tracking: dict[str, ModelTracking]) -> None:
        self._tracking = tracking
        self._steps = dict.fromkeys((job.name for job in jobs), 0)
        self._progress = Progress(console, "training", sum(job.total_steps for job in jobs), "steps")

    def __call__(self, name: str, status: TrainStatus, news: Sequence[Figures]) -> None:
        """Take one model's status, and what was recorded since."""
        self._steps[name] = status.step
        now = f"loss {status.loss:.3f}" if status.loss is not None else status.note or "is starting"
        self._progress.update(sum(self._steps.values()), f"{name} {now}")
        self._tracking[name].send(news)

    def close(self) -> None:
        """Close the models' trackers."""
        for tracking in self._tracking.values():
            tracking.finish()

    def finish(self) -> None:
        """End the phase."""
        self._progress.finish(f"{sum(self._steps.values()):,} steps")
