"""Short training as a proxy: many sub-networks of one teacher in the real training loop, with a small budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.units import parse_number
from slm_ray.data.shards import TokenShards
from slm_ray.models.extraction import extract
from slm_ray.models.teachers import Teacher
from slm_ray.pretrain.config import PretrainConfig
from slm_ray.pretrain.first_checkpoint import write_first_checkpoint
from slm_ray.pretrain.inputs import PretrainInputs, held_out_tokens, training_shards
from slm_ray.pretrain.job import TrainJob
from slm_ray.pretrain.launch import Resources, run_on_ray
from slm_ray.pretrain.lineage import ORIGIN, describe_data, describe_teacher
from slm_ray.pretrain.recorder import EVALS_FILE
from slm_ray.pretrain.results import export_checkpoint
from slm_ray.pretrain.run import make_job, resources_of
from slm_ray.records.files import read_json, write_json
from slm_ray.records.jsonl import read_records
from slm_ray.records.subnet import SubnetSpec
from slm_ray.runtime.environment import usable_cpus
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.room import cluster_room
from slm_ray.search.trained import LEARNING_RATE, Trained, batch_size_of

_MODEL_FILE, _RESULT_FILE, _CHECKPOINTS, _EXPORT = "model.json", "result.json", "checkpoints", "model"


def short_config(teacher: Teacher, tokens: str, sequence_length: int, **options: Any) -> PretrainConfig:
    """The options of a short training: pretraining's own, with small steps and nothing saved on the way.

    Args:
        teacher: Whom to distill from.
        tokens: The budget.
        sequence_length: Tokens per sequence.
        options: Other options of pretraining.
    """
    small = {"batch_size": batch_size_of(parse_number(tokens), sequence_length), "learning_rate": LEARNING_RATE}
    given = small | options
    return PretrainConfig(
        teacher=teacher.name, tokens=tokens, sequence_length=sequence_length, eval_every=tokens,
        checkpoint_every=tokens, keep_last=1, tracker="none", **given,
    )  # fmt: skip


class ShortTrainer:
    """Trains sub-networks on Ray, as many at once as fit; each has a folder of its own, named by its trial."""

    def __init__(
        self, config: PretrainConfig, teacher: Teacher, folder: Path, console: Console, *, keep_models: bool,
        measured_on: TokenShards | None = None, weights: Teacher | None = None,
    ) -> None:  # fmt: skip
        """Set up; nothing is prepared before there is something to train.

        Args:
            config: From :func:`short_config`.
            teacher: Whose sub-networks they are, and whom they are distilled from.
            folder: Holds the trials' folders.
            console: Where to say how far it is.
            keep_models: Keep every trained model as a Hugging Face folder ``TRIAL/model``; only its records otherwise.
            measured_on: What losses are measured on; the corpus's held-out part by default.
            weights: A model of the teacher's shape that they are cut out of; the teacher itself by default.
        """
        self._weights = weights or teacher
        self.config, self.teacher, self.folder, self.console = config, teacher, folder, console
        self.keep_models, self.measured_on = keep_models, measured_on

    @cached_property
    def _inputs(self) -> PretrainInputs:
        tokenizer = self.teacher.tokenizer()
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = training_shards(self.config, tokenizer, self.folder, self.console, usable_cpus())
        return PretrainInputs(self.teacher, (), shards, self._measured_tokens(tokenizer), None, 0.0)

    def _measured_tokens(self, tokenizer: Any) -> TokenShards:
        if self.measured_on is None:
            return held_out_tokens(self.config, tokenizer, self.folder, self.console)
        place = (self.folder / self.measured_on.part).resolve()
        if not place.is_dir():
            self.measured_on.copy_to(place)
        return TokenShards.open(place)

    def train(
        self, specs: Mapping[int, SubnetSpec], on_done: Callable[[int, Trained], None] = lambda trial, trained: None
    ) -> dict[int, Trained]:
        """Train every sub-network; those whose result is on the disk are not trained again.

        Args:
            specs: What each trial keeps.
            on_done: Told of each one as soon as its result is on the disk.

        Returns:
            What each trial's training gave; a failed one has its error, and is trained again at the next call.

        Raises:
            UserError: Nothing can be trained: no text, no room in the cluster, a full disk.
        """
        found: dict[int, Trained] = {}
        for trial in specs:
            if (self.folder / str(trial) / _RESULT_FILE).exists():
                found[trial] = Trained(**read_json(self.folder / str(trial) / _RESULT_FILE))
                on_done(trial, found[trial])
        left = [trial for trial in specs if trial not in found]
        if left:
            for trial, trained in self._train_waves(specs, left):
                found[trial] = trained
                on_done(trial, trained)
        return {trial: found[trial] for trial in specs}

    def _train_waves(self, specs: Mapping[int, SubnetSpec], left: list[int]) -> Iterator[tuple[int, Trained]]:
        """As many at a time as fit, so that no more checkpoints than those lie on the disk."""
        resources, at_once = _room_for(self.config, len(left))
        steps = self.config.total_steps()
        progress = Progress(self.console, "short training", steps * len(left), "steps")
        for start in range(0, len(left), at_once):
            wave, before = left[start : start + at_once], start * steps
            jobs = {trial: self._job(trial, specs[trial]) for trial in wave}
            done = dict.fromkeys((job.name for job in jobs.values()), 0)

            def watch(name: str, status: dict[str, Any], done: dict[str, int] = done, before: int = before) -> None:
                done[name] = status["step"]
                loss = f"{name} loss {status['loss']:.3f}" if status.get("loss") is not None else name
                progress.update(before + sum(done.values()), loss)

            folders = [self.folder / str(trial) for trial in wave]
            statuses = run_on_ray(list(jobs.values()), folders, resources, self.config.concurrent, watch)
            for trial, job in jobs.items():
                yield trial, self._finish(trial, job, statuses[job.name])
        progress.finish(f"{len(left)} models")

    def _job(self, trial: int, spec: SubnetSpec) -> TrainJob:
        """A sub-network's job, once it is written as its first checkpoint."""
        folder, name, inputs = self.folder / str(trial), f"trial-{trial}", self._inputs
        storage = str((folder / _CHECKPOINTS).resolve())
        if not (folder / _MODEL_FILE).exists():
            source = self._weights
            model = extract(source.state(), source.config(), source.family(), spec, dtype=torch.float32)
            length = self.config.sequence_length
            described = write_first_checkpoint(model, self.teacher.tokenizer(), length, storage, name)
            write_json(folder / _MODEL_FILE, described | {"start": "student", ORIGIN: self._origin(trial, spec)})
        model_facts, seed = read_json(folder / _MODEL_FILE), self.config.seeds()[0]
        return make_job(self.config, inputs, name, storage, seed, model_facts, self.config.total_steps())

    def _origin(self, trial: int, spec: SubnetSpec) -> dict[str, Any]:
        """Where a sub-network comes from, for the card of its model."""
        known = describe_teacher(self.teacher)
        return {
            "lineage": {"teacher": known, "trial": trial, "spec": spec.to_json()}, "student": f"trial {trial}",
            "distilled_from": known if self.config.distill != "none" else None, "data": describe_data(self._inputs),
        }  # fmt: skip

    def _finish(self, trial: int, job: TrainJob, status: dict[str, Any]) -> Trained:
        folder = self.folder / str(trial)
        trained = _read_trained(folder, status, read_json(folder / _MODEL_FILE)["flops_per_token"])
        if trained.error is None:
            if self.keep_models:
                export_checkpoint(job.storage, folder / _EXPORT, of=folder, config=self.config.to_json())
            write_json(folder / _RESULT_FILE, trained.to_json())
        shutil.rmtree(job.storage, ignore_errors=True)
        if trained.error is not None:
            (folder / _MODEL_FILE).unlink(missing_ok=True)  # its checkpoint is gone: it starts anew if tried again
        return trained


def _room_for(config: PretrainConfig, num_models: int) -> tuple[Resources, int]:
    """What each of several models takes of the cluster, and how many train at once."""
    resources = resources_of(config, num_models)
    fits = resources.how_many_fit(cluster_room())
    return resources, min(fits, config.concurrent or fits)


def _read_trained(folder: Path, status: dict[str, Any], flops_per_token: float) -> Trained:
    """What a training's status and records say."""
    evals = read_records(folder / EVALS_FILE)
    first = evals[0]["loss"] if evals else None
    if status["failure"]:
        return Trained(0, first, None, 0.0, 0.0, status["failure"]["message"])
    end, last = status["end"], evals[-1]
    flops = end["flops"]["own"] + end["flops"]["teacher"] + flops_per_token * sum(one["eval_tokens"] for one in evals)
    error = None if last["loss"] is not None else "its loss after training is no number"
    return Trained(end["tokens"], first, last["loss"], flops, round(end["seconds"], 3), error)
