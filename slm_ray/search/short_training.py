"""Short training as a proxy: many sub-networks of one teacher in the real training loop, with a small budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.base import build_config
from slm_ray.data.shards import TokenShards
from slm_ray.models.extraction import extract
from slm_ray.models.teachers import Teacher
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.inputs import PretrainInputs, held_out_tokens, training_shards
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.launch import Resources, resources_of
from slm_ray.pretrain.lineage import describe_data, describe_teacher
from slm_ray.pretrain.results import export_model
from slm_ray.pretrain.run import make_job, start_model, train_jobs
from slm_ray.records.base import find_record, read_lines, read_record, write_record
from slm_ray.records.lineage import Lineage
from slm_ray.records.search import ShortTraining
from slm_ray.records.subnet import SubnetSpec
from slm_ray.records.training import (
    CHECKPOINTS_FOLDER,
    EXPORT_FOLDER,
    Origin,
    TrainedModel,
    TrainEvaluation,
    TrainStatus,
)
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.room import cluster_room
from slm_ray.runtime.shared import publish
from slm_ray.runtime.storage import Place, below, storage_for_workers
from slm_ray.search.config import SHORT_LEARNING_RATE, short_batch_size


def short_config(teacher: Teacher, tokens: int, sequence_length: int, **options: Any) -> PretrainConfig:
    """The options of a short training: pretraining's own, with small steps and nothing saved on the way."""
    small = {"batch_size": short_batch_size(tokens, sequence_length), "learning_rate": SHORT_LEARNING_RATE}
    given = small | options
    return build_config(PretrainConfig, {
        "student": teacher.name, "teacher": teacher.name, "tokens": tokens, "sequence_length": sequence_length,
        "eval_every": tokens, "checkpoint_every": tokens, "keep_last": 1, "tracker": "none", **given,
    })  # fmt: skip


class ShortTrainer:
    """Trains sub-networks on Ray, as many at once as fit; each has a folder of its own, named by its trial."""

    def __init__(
        self, config: PretrainConfig, teacher: Teacher, folder: Path, console: Console, *, keep_models: bool,
        measured_on: TokenShards | None = None,
    ) -> None:  # fmt: skip
        """Set up; nothing is prepared before there is something to train.

        ``measured_on``: What losses are measured on; the corpus's held-out part by default.
        """
        self.config, self.teacher, self.folder, self.console = config, teacher, folder, console
        self.keep_models, self.measured_on = keep_models, measured_on

    @cached_property
    def _inputs(self) -> PretrainInputs:
        tokenizer = self.teacher.tokenizer()
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = training_shards(self.config, tokenizer, self.folder, self.console, usable_cpus())
        measured = self._measured_tokens(tokenizer)
        for path in (shards.folder, measured.folder, self.teacher.folder):
            publish(path)
        return PretrainInputs(self.teacher, (), shards, measured, None, 0.0)

    def _measured_tokens(self, tokenizer: Any) -> TokenShards:
        if self.measured_on is None:
            return held_out_tokens(self.config, tokenizer, self.folder, self.console)
        place = (self.folder / self.measured_on.part).resolve()
        if not place.is_dir():
            self.measured_on.copy_to(place)
        return TokenShards.open(place)

    def train(
        self, specs: Mapping[int, SubnetSpec], on_done: Callable[[int, ShortTraining], None] = lambda trial, one: None
    ) -> dict[int, ShortTraining]:
        """Train every sub-network; those whose result is on the disk are not trained again."""
        found: dict[int, ShortTraining] = {}
        for trial in specs:
            if (known := find_record(self.folder / str(trial), ShortTraining)) is not None:
                found[trial] = known
                on_done(trial, known)
        left = [trial for trial in specs if trial not in found]
        if left:
            for trial, trained in self._train_waves(specs, left):
                found[trial] = trained
                on_done(trial, trained)
        return {trial: found[trial] for trial in specs}

    def _train_waves(self, specs: Mapping[int, SubnetSpec], left: list[int]) -> Iterator[tuple[int, ShortTraining]]:
        """As many at a time as fit, so that no more checkpoints than those lie on the disk."""
        resources, at_once = _room_for(self.config, len(left))
        steps = self.config.total_steps
        progress = Progress(self.console, "short training", steps * len(left), "steps")
        for start in range(0, len(left), at_once):
            wave, before = left[start : start + at_once], start * steps
            jobs = {trial: self._job(trial, specs[trial]) for trial in wave}
            done = dict.fromkeys((job.name for job in jobs.values()), 0)

            def watch(
                name: str, status: TrainStatus, _news: object, done: dict[str, int] = done, before: int = before
            ) -> None:
                done[name] = status.step
                loss = f"{name} loss {status.loss:.3f}" if status.loss is not None else name
                progress.update(before + sum(done.values()), loss)

            folders = [self.folder / str(trial) for trial in wave]
            statuses = train_jobs(self.config, list(jobs.values()), folders, watch, resources=resources)
            for trial, job in jobs.items():
                yield trial, self._finish(trial, job, statuses[job.name])
        progress.finish(f"{len(left)} models")

    def _job(self, trial: int, spec: SubnetSpec) -> TrainJob:
        """A sub-network's job, once it is written as its first checkpoint."""
        folder, name, inputs = self.folder / str(trial), f"trial-{trial}", self._inputs
        storage = str((folder / CHECKPOINTS_FOLDER).resolve())
        if shared := storage_for_workers(self.config.run.storage, self.config.run.address):
            storage = below(shared, f"{self.folder.resolve().parent.name}/{self.folder.name}/{name}")
        if not (folder / TrainedModel.FILE).exists():
            source = self.teacher
            model = extract(source.state(), source.config(), source.family(), spec, dtype=torch.float32)
            start_model(
                folder, storage, model, self.teacher.tokenizer(), self.config.data.sequence_length, start="student",
                source=self.teacher.name, name=name, origin=self._origin(trial, spec),
            )  # fmt: skip
        return make_job(self.config, inputs, folder, storage, self.config.batch.seed[0], name)

    def _origin(self, trial: int, spec: SubnetSpec) -> Origin:
        """Where a sub-network comes from, for the card of its model."""
        known = describe_teacher(self.teacher)
        return Origin(
            lineage=Lineage(teacher=known, trial=trial, spec=spec.to_json()).to_json(), student=f"trial {trial}",
            distilled_from=known if self.config.kind != "none" else None, data=describe_data(self._inputs),
        )  # fmt: skip

    def _finish(self, trial: int, job: TrainJob, status: TrainStatus) -> ShortTraining:
        folder = self.folder / str(trial)
        trained = _read_trained(folder, status, read_record(folder, TrainedModel).flops_per_token)
        if trained.error is None:
            if self.keep_models:
                export_model(folder, job.storage, folder / EXPORT_FOLDER, self.config)
            write_record(folder, trained)
        Place(job.storage).remove_folder("")
        if trained.error is not None:
            (folder / TrainedModel.FILE).unlink(missing_ok=True)  # its checkpoint is gone: it will start anew
        return trained


def _room_for(config: PretrainConfig, num_models: int) -> tuple[Resources, int]:
    """What each of several models takes of the cluster, and how many train at once."""
    resources = resources_of(config, num_models)
    fits = resources.how_many_fit(cluster_room())
    return resources, min(fits, config.run.concurrent or fits)


def _read_trained(folder: Path, status: TrainStatus, flops_per_token: float) -> ShortTraining:
    """What a training's status and records say."""
    evals = read_lines(folder / TrainEvaluation.FILE, TrainEvaluation)
    first = evals[0].loss if evals else None
    if status.failure or status.end is None:
        said = status.failure.message if status.failure else "it did not end"
        return ShortTraining(tokens=0, first_loss=first, loss=None, flops=0.0, seconds=0.0, error=said)
    end, last = status.end, evals[-1]
    flops = end.flops.own + end.flops.teacher + flops_per_token * sum(one.eval_tokens for one in evals)
    return ShortTraining(
        tokens=end.tokens, first_loss=first, loss=last.loss, flops=flops, seconds=round(end.seconds, 3),
        error=None if last.loss is not None else "its loss after training is not a number",
    )  # fmt: skip
