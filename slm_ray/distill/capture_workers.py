"""The parts of a logit store captured by Ray Data, on actors that load the teacher once."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm_ray.core.errors import UserError
from slm_ray.core.progress import Console
from slm_ray.data.shards import TokenShards
from slm_ray.distill import store_format
from slm_ray.distill.capture_reader import SignalReader
from slm_ray.distill.capture_settings import CaptureSettings
from slm_ray.models.teachers import Teacher

_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """What every worker is given.

    Attributes:
        teacher: The teacher.
        shards: The folder of the tokens.
        settings: What to keep.
        device: ``cpu`` or ``cuda``.
        threads: Threads, and CPUs, of a worker.
        work: Where parts go.
        part_sequences: Sequences in a part.
    """

    teacher: Teacher
    shards: Path
    settings: CaptureSettings
    device: str
    threads: int
    work: Path
    part_sequences: int


class _Capturer:
    """A Ray Data actor: captures part after part with one teacher."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reader: SignalReader | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Capture one part; what a user can mend is handed back as a sentence."""
        sequences, problem = 0, ""
        try:
            sequences = self._capture(int(row["part"]))
        except UserError as error:
            problem = str(error)
        except torch.OutOfMemoryError:
            problem = "the GPU's memory is too small for this teacher: give --device cpu"
        return {"part": row["part"], "sequences": sequences, "error": problem}

    def _capture(self, number: int) -> int:
        job, began = self._job, time.monotonic()
        if self._reader is None:
            torch.set_num_threads(job.threads)
            self._reader = SignalReader(job.teacher, TokenShards.open(job.shards), job.settings, job.device)
        first = number * job.part_sequences
        count = min(job.part_sequences, self._reader.shards.num_sequences - first)
        store_format.write_part(job.work, number, first, count, self._reader.read(first, count), began)
        return count


def worker_deaths() -> tuple[type[Exception], ...]:
    """What Ray raises when a worker is gone."""
    from ray import exceptions

    return (
        exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError
    )  # fmt: skip


def workers_that_fit(wanted: int, job: Job, console: Console) -> int:
    """How many workers the cluster has room for, at most what is wanted.

    Raises:
        UserError: There is no room for one; what is asked and what is free are named.
    """
    import ray

    asked = {"CPU": float(job.threads)} | ({"GPU": 1.0} if job.device == "cuda" else {})
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:  # what finished a moment ago gives its resources back a moment later
        free = ray.available_resources()
        room = min(int(free.get(name, 0) // amount) for name, amount in asked.items())
        if room >= wanted or time.monotonic() > end:
            break
        time.sleep(0.2)
    if room < 1:
        needs, there = (
            ", ".join(f"{amounts.get(name, 0):g} {name}" for name in asked) for amounts in (asked, free)
        )
        raise UserError(f"a capture worker needs {needs}, and {there} of the Ray cluster are free: give it room")
    if room < wanted:
        console.line(f"there is room for {room} of {wanted} workers")
    return min(room, wanted)


def finished_parts(job: Job, parts: list[int], workers: int) -> Iterator[tuple[int, int]]:
    """Run parts through Ray Data: each one's number and sequences as it is finished.

    Ray Data does not start a dead actor again: that would go on for ever where memory is what is missing.
    """
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with _quiet(), ray.data.DataContext.current(context):
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map(
            _Capturer,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts)), max_tasks_in_flight_per_actor=1),
            num_cpus=job.threads,
            num_gpus=1 if job.device == "cuda" else None,
            max_restarts=0,
        )
        for row in rows.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield int(row["part"]), int(row["sequences"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data from printing plans and hints."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
