"""One model measured: loaded once, one measurement after another; the same in this process and in Ray's workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.errors import UserError, first_line
from slm_ray.data.shards import TokenShards
from slm_ray.evaluate.config import SEPARATE, SLIDING
from slm_ray.evaluate.inputs import EFFICIENCY, GENERATION, TASK, TEXT, MeasurementSpec
from slm_ray.evaluate.models import LoadedModel, ModelFolder, load_tokenizer
from slm_ray.records.files import read_json
from slm_ray.records.measurement import EfficiencyRecord, MeasurementRecord
from slm_ray.runtime.shared import local_copy


@dataclass(frozen=True)
class ModelJob:
    """What a worker is told."""

    model: ModelFolder
    label: str
    specs: tuple[MeasurementSpec, ...]
    precision: str
    device: str
    threads: int  # CPU threads while several models are measured at once
    all_threads: int  # CPU threads of a measurement that has the machine to itself
    batch: int
    machine: str  # Names the evaluation among those on a machine: nothing else of it runs while efficiency is measured

    def reads(self) -> list[Path]:
        """The folders that its worker opens, wherever that is."""
        inputs = [spec.inputs.get("place") or getattr(spec.inputs.get("task"), "rows", None) for spec in self.specs]
        return [self.model.folder, *(Path(place) for place in inputs if place)]


@dataclass(frozen=True)
class Said:
    """A line of progress."""

    text: str


@dataclass(frozen=True)
class Loaded:
    """The model is in memory."""

    seconds: float


@dataclass(frozen=True)
class Measured:
    """A measurement is done."""

    spec: MeasurementSpec
    record: MeasurementRecord


@dataclass(frozen=True)
class Failed:
    """A measurement, or with ``spec`` None all that was left of the model, could not be made."""

    sentence: str  # For the user
    spec: MeasurementSpec | None = None
    trace: str = ""  # The traceback of what is not the user's mistake
    is_resumable: bool = False  # The same evaluation may succeed when it is continued, such as with a smaller batch


Message = Said | Loaded | Measured | Failed
Emit = Callable[[Message], None]


@contextlib.contextmanager
def _machine(name: str, *, alone: bool) -> Iterator[None]:
    """Share the machine with the evaluation's other workers on it, or have it alone."""
    with (Path(tempfile.gettempdir()) / f"slm_ray-{os.getuid()}-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def measure_model(job: ModelJob, emit: Emit) -> None:
    """Load a model and measure it; every message is emitted as soon as it is known."""
    torch.set_num_threads(job.threads)
    start = time.perf_counter()
    try:
        model = replace(job.model, folder=local_copy(job.model.folder))
        loaded = LoadedModel(model, job.precision, torch.device(job.device))
        tokenizer = load_tokenizer(model) if any(map(_needs_tokenizer, job.specs)) else None
        emit(Loaded(round(time.perf_counter() - start, 3)))
        for spec in job.specs:
            alone = spec.kind == EFFICIENCY
            with _machine(job.machine, alone=alone):
                torch.set_num_threads(job.all_threads if alone else job.threads)
                start = time.perf_counter()
                try:
                    record = _measure(job, spec, loaded, tokenizer, lambda text: emit(Said(text)))
                except UserError as error:  # this task or text does not suit this model; the others may
                    emit(Failed(str(error), spec))
                    continue
                seconds = round(time.perf_counter() - start, 3)
                emit(Measured(spec, record.model_copy(update={"seconds": seconds})))
    except UserError as error:
        emit(Failed(str(error)))
    except torch.cuda.OutOfMemoryError:
        fix = f"give a smaller --batch than {job.batch}"
        emit(Failed(f"{job.label} does not fit the GPU's memory: {fix}", is_resumable=True))
    except Exception as error:  # a model that nobody planned for stops itself, and not the other models
        said = f"{type(error).__name__}: {first_line(error)}"
        sentence = f"{job.label} could not be measured ({said}): leave it out, or see where with --debug"
        emit(Failed(sentence, trace=traceback.format_exc()))


def _needs_tokenizer(spec: MeasurementSpec) -> bool:
    """Packed text comes as tokens, and efficiency reads random ones."""
    return spec.kind in (TASK, GENERATION) or spec.settings.get("window") == SLIDING


def _measure(
    job: ModelJob, spec: MeasurementSpec, loaded: LoadedModel, tokenizer: Any, say: Callable[[str], None]
) -> MeasurementRecord:
    header, settings, inputs = spec.header(job.label, loaded.params) | {"seconds": 0.0}, spec.settings, spec.inputs
    if spec.kind == TEXT:
        from slm_ray.evaluate.text_loss import measure_packed, measure_sliding

        place = local_copy(Path(inputs["place"]))
        if settings["window"] == SLIDING:
            return measure_sliding(
                loaded, read_json(place), tokenizer, header, length=settings["length"], stride=settings["stride"],
                batch=job.batch, corpus=inputs["corpus"], corpus_digest=inputs["corpus_digest"], say=say,
            )  # fmt: skip
        separate = settings["documents"] == SEPARATE
        return measure_packed(loaded, TokenShards.open(place), header, separate=separate, batch=job.batch, say=say)
    if spec.kind == TASK:
        from slm_ray.evaluate.task_run import run_task

        return run_task(loaded, tokenizer, inputs["task"], header, batch=job.batch, say=say)
    if spec.kind == GENERATION:
        from slm_ray.evaluate.generation import generate

        return generate(loaded, tokenizer, inputs["prompts"], inputs["settings"], header, batch=job.batch, say=say)
    from slm_ray.evaluate.efficiency import measure_efficiency

    return EfficiencyRecord(**header, figures=measure_efficiency(loaded, say=say))
