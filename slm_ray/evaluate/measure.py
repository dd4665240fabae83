"""One model measured: loaded once, its parts one after another; in the command's process and in Ray's alike."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.errors import UserError, first_line
from slm_ray.data import TokenShards
from slm_ray.evaluate.config import SEPARATE, SLIDING
from slm_ray.evaluate.models import LoadedModel, ModelFolder, load_tokenizer
from slm_ray.evaluate.parts import EFFICIENCY, GENERATION, TASK, TEXT, Part
from slm_ray.runtime.copies import local_copy

SAY, LOADED, RECORD, PART_FAILED, FAILED = "say", "loaded", "record", "part failed", "failed"
Message = tuple[str, Any]
Emit = Callable[[Message], None]


@dataclass(frozen=True)
class ModelJob:
    """What a worker is told.

    Attributes:
        model: The model.
        label: What to call it in progress lines.
        parts: What is to be measured.
        precision: ``fp32`` or ``bf16``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads while several models are measured at once.
        all_threads: CPU threads of a measurement that has the machine to itself.
        batch: Sequences at once.
        quiet: Names what shares the machine: nothing else of the evaluation runs while efficiency is measured.
    """

    model: ModelFolder
    label: str
    parts: tuple[Part, ...]
    precision: str
    device: str
    threads: int
    all_threads: int
    batch: int
    quiet: str


@contextlib.contextmanager
def _machine(name: str, *, alone: bool) -> Iterator[None]:
    """Share the machine with the evaluation's other workers on it, or have it alone."""
    with (Path(tempfile.gettempdir()) / f"slm_ray-{os.getuid()}-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def measure_model(job: ModelJob, emit: Emit) -> None:
    """Load a model and measure its parts; what each says is emitted as soon as it is there.

    Emits ``("loaded", {"params", "seconds"})``, ``("say", text)`` and ``("record", (index of the part, record))``. For
    a part that cannot be measured for a reason the user can mend: ``("part failed", (index, sentence))``; where nothing
    more can be: ``("failed", (sentence, traceback))``, without a traceback where the user can mend it.

    Args:
        job: What to do.
        emit: Takes the messages.
    """
    torch.set_num_threads(job.threads)
    start = time.perf_counter()
    try:
        model = replace(job.model, folder=local_copy(job.model.folder))
        loaded = LoadedModel(model, job.precision, torch.device(job.device))
        tokenizer = load_tokenizer(model) if {part.kind for part in job.parts} & _READ_TEXT else None
        emit((LOADED, {"params": loaded.params, "seconds": round(time.perf_counter() - start, 3)}))
        for index, part in enumerate(job.parts):
            alone = part.kind == EFFICIENCY
            with _machine(job.quiet, alone=alone):
                torch.set_num_threads(job.all_threads if alone else job.threads)
                try:
                    record = _measure(job, part, loaded, tokenizer, lambda text: emit((SAY, text)))
                except UserError as error:  # this task or text does not suit this model; the others may
                    emit((PART_FAILED, (index, str(error))))
                    continue
                emit((RECORD, (index, record)))
    except UserError as error:
        emit((FAILED, (str(error), "")))
    except torch.cuda.OutOfMemoryError:
        emit((FAILED, (f"{job.label} does not fit the GPU's memory: give a smaller --batch than {job.batch}", "")))
    except Exception as error:  # a model that nobody planned for stops itself, and not the other models
        said = f"{type(error).__name__}: {first_line(error)}"
        sentence = f"{job.label} could not be measured ({said}): leave it out, or see where with --debug"
        emit((FAILED, (sentence, traceback.format_exc())))


def _measure(
    job: ModelJob, part: Part, loaded: LoadedModel, tokenizer: Any, say: Callable[[str], None]
) -> Mapping[str, Any]:
    start = time.perf_counter()
    record = dict(_MEASURES[part.kind](job, part, loaded, tokenizer, say))
    return record | {"params": loaded.params, "seconds": round(time.perf_counter() - start, 3)}


def _text(job: ModelJob, part: Part, loaded: LoadedModel, tokenizer: Any, say: Callable[[str], None]) -> Any:
    from slm_ray.evaluate.documents import DocumentTokens
    from slm_ray.evaluate.text_record import measure_packed, measure_sliding

    place, settings = local_copy(Path(part.inputs["place"])), part.settings
    if settings["window"] == SLIDING:
        length, stride = settings["length"], settings["stride"]
        documents = DocumentTokens.open(place)
        return measure_sliding(loaded, documents, length=length, stride=stride, batch=job.batch, say=say)
    separate = settings["documents"] == SEPARATE
    return measure_packed(loaded, TokenShards.open(place), separate=separate, batch=job.batch, say=say)


def _task(job: ModelJob, part: Part, loaded: LoadedModel, tokenizer: Any, say: Callable[[str], None]) -> Any:
    from slm_ray.evaluate.tasks.plan import TaskPlan
    from slm_ray.evaluate.tasks.run import run_task

    plan = TaskPlan.from_json(part.inputs["plan"])
    return run_task(loaded, tokenizer, plan, part.name, batch=job.batch, say=say)


def _generation(job: ModelJob, part: Part, loaded: LoadedModel, tokenizer: Any, say: Callable[[str], None]) -> Any:
    from slm_ray.evaluate.generation import generate
    from slm_ray.evaluate.prompts import Prompt

    prompts = [Prompt.from_json(entry) for entry in part.inputs["prompts"]]
    return generate(loaded, tokenizer, prompts, dict(part.inputs["settings"]) | {"batch": job.batch}, say)


def _efficiency(job: ModelJob, part: Part, loaded: LoadedModel, tokenizer: Any, say: Callable[[str], None]) -> Any:
    from slm_ray.evaluate.efficiency import measure_efficiency

    return measure_efficiency(loaded, part.settings, say)


_READ_TEXT = {TASK, GENERATION}  # held-out text comes as tokens, and efficiency needs no words
_MEASURES: Mapping[str, Callable[..., Any]] = {
    TEXT: _text, TASK: _task, GENERATION: _generation, EFFICIENCY: _efficiency,
}  # fmt: skip
