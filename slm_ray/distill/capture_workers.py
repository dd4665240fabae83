"""The parts of a logit store captured by Ray Data, in processes that load the teacher once.

They are tasks and not actors, so that processes which took seconds to import torch are there from the preparation of
tokens before, and so that one that dies is replaced by Ray as a matter of course.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm_ray.config.errors import UserError
from slm_ray.data.shards import TokenShards
from slm_ray.distill import store_format
from slm_ray.distill.capture_reader import SignalReader
from slm_ray.distill.capture_settings import CaptureSettings
from slm_ray.models.teachers import Teacher
from slm_ray.runtime.deliveries import outbox
from slm_ray.runtime.progress import Console
from slm_ray.runtime.room import free_room
from slm_ray.runtime.shared import local_copy

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


@functools.lru_cache(maxsize=1)
def _reader(job: Job) -> SignalReader:
    """The teacher, ready to run; made once per process."""
    torch.set_num_threads(job.threads)
    return SignalReader(job.teacher.here(), TokenShards.open(local_copy(job.shards)), job.settings, job.device)


def capture_part(row: dict[str, Any], job: Job) -> dict[str, Any]:
    """Capture one part; what a user can mend is handed back as a sentence.

    Args:
        row: The number of the ``part``.
        job: What to capture, and how.

    Returns:
        The ``part``, the ``sequences`` that are now in it, and an ``error`` or an empty text.
    """
    number, began = int(row["part"]), time.monotonic()
    count, problem = 0, ""
    try:
        reader = _reader(job)
        first = number * job.part_sequences
        count = min(job.part_sequences, reader.shards.num_sequences - first)
        arrays = reader.read(first, count)
        with outbox(job.work) as folder:
            store_format.write_part(folder, number, first, count, arrays, began)
    except UserError as error:
        problem = str(error)
    except torch.OutOfMemoryError:
        problem = "the GPU's memory is too small for this teacher: give --device cpu"
    return {"part": number, "sequences": count, "error": problem}


def workers_that_fit(wanted: int, job: Job, console: Console) -> int:
    """How many workers the cluster has room for, at most what is wanted.

    Raises:
        UserError: There is no room for one; what is asked and what is free are named.
    """
    asked = {"CPU": float(job.threads)} | ({"GPU": 1.0} if job.device == "cuda" else {})
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:  # what finished a moment ago gives its resources back a moment later
        free = free_room()
        room = min(int(free.get(name, 0) // amount) for name, amount in asked.items())
        if room >= wanted or time.monotonic() > end:
            break
        time.sleep(0.2)
    if room < 1:
        needs, there = (", ".join(f"{amounts.get(name, 0):g} {name}" for name in asked) for amounts in (asked, free))
        raise UserError(f"a capture worker needs {needs}, and {there} of the Ray cluster are free: give it room")
    if room < wanted:
        console.line(f"there is room for {room} of {wanted} workers")
    return min(room, wanted)


def finished_parts(job: Job, parts: list[int], workers: int) -> Iterator[int]:
    """Run parts through Ray Data: the sequences of each as it is finished.

    Raises:
        UserError: A worker met something that a user can mend.
    """
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    on_gpu: dict[str, Any] = {"num_gpus": 1, "max_calls": 0} if job.device == "cuda" else {}  # 0: the process stays
    with _quiet(), ray.data.DataContext.current(context):
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map(
            functools.partial(capture_part, job=job),
            compute=ray.data.TaskPoolStrategy(size=min(workers, len(parts))),
            num_cpus=job.threads,
            **on_gpu,
        )
        for row in rows.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield int(row["sequences"])


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
