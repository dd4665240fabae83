"""Short training and measuring without Ray: tokens prepared, and every model trained, in the test's own process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from slm_ray.config.errors import UserError
from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards
from slm_ray.data.split import TRAIN
from slm_ray.pretrain.engine import Place
from slm_ray.pretrain.job import Event, Recorder, TrainJob
from slm_ray.pretrain.launch import Resources
from slm_ray.pretrain.trainer import train
from slm_ray.records.files import cache_folder
from slm_ray.records.training import TrainFailure, TrainStep

Break = Callable[[TrainJob], None]


def _shards(config: Any, tokenizer: Any, folder: Any, console: Any, workers: int) -> TokenShards:
    place = folder / "shards"
    if not place.is_dir():
        packed = prepare_tokens(
            load_corpus(config.data.data, config.data.text_field, console), tokenizer, TRAIN,
            num_tokens=config.num_tokens, sequence_length=config.data.sequence_length,
            cache=cache_folder() / "tokens", console=console,
        )  # fmt: skip
        packed.copy_to(place)
    return TokenShards.open(place.resolve())


def train_without_ray(patch: pytest.MonkeyPatch, break_down: Break = lambda job: None) -> list[str]:
    """Train in this process with torch's engine; gives the names of the jobs that were really trained, as they end.

    Args:
        patch: Undone at the test's end.
        break_down: Called before each job; what it raises is the job's failure, or ends the process's work.
    """
    from slm_ray.search import short_training

    trained: list[str] = []
    patch.setattr(short_training, "train_jobs", _runner(break_down, trained))
    patch.setattr(short_training, "_room_for", lambda config, count: (Resources(1, 1, False), 2))
    patch.setattr(short_training, "training_shards", _shards)
    return trained


def pretrain_without_ray(patch: pytest.MonkeyPatch, watch_step: Break = lambda job: None) -> list[str]:
    """Let pretraining's own command train in this process; gives the names of the jobs that were trained, as they end.

    Args:
        patch: Undone at the test's end.
        watch_step: Called after each step; what it raises ends the process's work.
    """
    from slm_ray.pretrain import inputs
    from slm_ray.pretrain import run as pretrain_run

    trained: list[str] = []
    patch.setattr(pretrain_run, "ray_session", lambda *_: contextlib.nullcontext())
    patch.setattr(pretrain_run, "resources_of", lambda config, count: Resources(1, 1, False))
    patch.setattr(pretrain_run, "train_jobs", _runner(lambda job: None, trained, watch_step))
    patch.setattr(inputs, "training_shards", _shards)
    return trained


def _runner(break_down: Break, trained: list[str], watch_step: Break = lambda job: None) -> Callable[..., Any]:
    def run(_config: Any, jobs: Any, folders: Any, watch: Any, *_where: Any, **_more: Any) -> dict[str, Any]:
        statuses = {}
        for job, folder in zip(jobs, folders, strict=True):
            recorder = Recorder(str(folder))
            here = job.model_copy(update={"config": job.config.replace(engine="torch", precision="fp32")})

            def say(event: Event, job: TrainJob = job, say: Callable[..., Any] = recorder.say) -> None:
                say(event)
                if isinstance(event, TrainStep):
                    watch_step(job)

            try:
                break_down(job)
                failure = train(here, Place(0, 1, torch.device("cpu")), say)
                trained.append(job.name)
            except UserError as error:
                failure = TrainFailure(message=str(error))
            if failure:
                recorder.say(failure)
            statuses[job.name] = recorder.status
            watch(job.name, *recorder.news())
        return statuses

    return run


def report_without_ray(patch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...]]]:
    """Let the command measure in this process; gives what was measured: trials, and with which proxies."""
    from slm_ray.studies import correlate

    measured: list[tuple[int, tuple[str, ...]]] = []
    real = correlate.measure_in_full

    def measure(settings: Any, specs: Any, workers: int, on_done: Any) -> None:
        measured.extend((trial, settings.proxies) for trial in specs)
        real(settings, specs, 0, on_done)

    patch.setattr(correlate, "ray_session", lambda *_: contextlib.nullcontext())
    patch.setattr(correlate, "usable_cpus", lambda: 0)
    patch.setattr(correlate, "measure_in_full", measure)
    return measured
