"""Writing a logit store: the teacher runs over token shards once, in parallel, and what is wanted of it is kept.

A store grows part by part beside its place and takes its name when it is whole. A part is a few seconds of work, is
written whole or not at all, and depends on nothing but the request: not on the number of workers, and not on who was
killed when.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.data.shards import TokenShards
from slm_ray.distill import store_format
from slm_ray.distill.capture_settings import CaptureSettings
from slm_ray.distill.capture_workers import Job, finished_parts, workers_that_fit
from slm_ray.distill.store import LogitStore, difference
from slm_ray.distill.store_format import LOG_FILE, REQUEST_FILE
from slm_ray.models.teachers import Teacher
from slm_ray.records.cost import flops_per_token
from slm_ray.records.files import explain_os_error, fsync_folder, read_json, write_json
from slm_ray.runtime.environment import describe_environment
from slm_ray.runtime.progress import Console, Progress

_LOCK_FILE = ".lock"


def find_store(out: Path, request: Mapping[str, Any]) -> LogitStore | None:
    """The store of this request at ``out``, if it is there and whole.

    Raises:
        UserError: There is a store of another request, finished or not.
    """
    work = store_format.work_folder(out)
    if (work / store_format.MANIFEST_FILE).is_file():  # killed just before it took its name
        _check_same(work, "a store", store_format.read_manifest(work)["request"], request)
    elif (work / REQUEST_FILE).is_file():
        _check_same(work, "an unfinished store", read_json(work / REQUEST_FILE), request)
    if (out / store_format.MANIFEST_FILE).is_file():
        store = LogitStore.open(out)
        _check_same(out, "a store", store.manifest["request"], request)
        return store
    return None


def check_place(out: Path) -> None:
    """Make sure that a store could be put, or is, at ``out``.

    Raises:
        UserError: Something else is there.
    """
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise explain_os_error(error, f"reading {out}") from error
    if taken and not (out / store_format.MANIFEST_FILE).is_file():
        raise UserError(f"{out} is not empty and holds no logit store: choose another --out")


def _check_same(folder: Path, what: str, before: Any, request: Mapping[str, Any]) -> None:
    found = difference(before if isinstance(before, dict) else {}, request)
    if found is not None:
        name, there, here = found
        raise UserError(
            f"{folder} holds {what} of another request (its {name} is {there}, not {here}): delete it, or choose "
            "another --out"
        )


def capture(
    teacher: Teacher,
    shards: TokenShards,
    settings: CaptureSettings,
    out: Path,
    *,
    console: Console,
    workers: int,
    threads: int,
    device: str = "cpu",
) -> LogitStore:
    """Make a store, or what is missing of it. Ray must have been started by the caller.

    Args:
        teacher: The teacher.
        shards: The tokens; on a cluster, they, the teacher and ``out`` lie where every node sees them.
        settings: What to keep.
        out: What the store is to be called.
        console: Where to say how far it is; the store keeps a copy of that.
        workers: Teachers that run at once.
        threads: Threads, and CPUs, of each.
        device: ``cpu``, or ``cuda`` for one GPU per worker.

    Returns:
        The store. One that is there already is checked and given back.

    Raises:
        UserError: Settings, teacher and tokens do not go together; something else is at ``out``; or files cannot be
            read or written.
    """
    check_place(out)
    check_inputs(teacher, shards, settings)
    request = settings.request(teacher, shards)
    with _locked(out) as work:
        if (found := find_store(out, request)) is not None:
            console.line(f"{out} holds this store already")
            return found
        if not (work / store_format.MANIFEST_FILE).is_file():
            write_json(work / REQUEST_FILE, request)
            console = Console(work / LOG_FILE, console.stream)
            job = Job(teacher, shards.folder, settings, device, threads, work.resolve(), _part_sequences(shards))
            _capture_parts(job, shards, console, workers)
            _write_manifest(work, teacher, shards, request)
        _take_name(work, out)
    return LogitStore.open(out)


def check_inputs(teacher: Teacher, shards: TokenShards, settings: CaptureSettings) -> None:
    """Check settings and tokens against the teacher.

    Raises:
        UserError: They do not go together.
    """
    from slm_ray.data import tokenizer_digest

    structure = teacher.architecture().structure
    settings.check(structure, shards.sequence_length)
    own = tokenizer_digest(teacher.tokenizer())
    if own != shards.tokenizer_digest or shards.vocab_size > structure.vocab_size:
        raise UserError(
            f"the token shards {shards.folder} were made with tokenizer {shards.tokenizer_digest[:16]} of "
            f"{shards.vocab_size:,} words, and teacher {teacher.name} has {own[:16]} and {structure.vocab_size:,} "
            "words: prepare them with the teacher's own"
        )


def _part_sequences(shards: TokenShards) -> int:
    return store_format.part_sequences(shards.num_sequences, shards.sequence_length)


def _capture_parts(job: Job, shards: TokenShards, console: Console, workers: int) -> None:
    """Capture every part that has no record yet."""
    count = -(-shards.num_sequences // job.part_sequences)
    missing = [number for number in range(count) if not store_format.record_file(job.work, number).is_file()]
    done = (
        shards.num_tokens
        - sum(min(job.part_sequences, shards.num_sequences - number * job.part_sequences) for number in missing)
        * shards.sequence_length
    )
    if not missing:
        return
    if done:
        console.line(f"{count - len(missing)} of {count} parts are there already")
    progress = Progress(console, "capturing", shards.num_tokens, "tokens", done)
    began = time.monotonic()
    for sequences in finished_parts(job, missing, workers_that_fit(workers, job, console)):
        done_now = progress.done + sequences * shards.sequence_length
        rate = (done_now - done) / (time.monotonic() - began)
        progress.update(done_now, f"{format_count(rate)} tokens/s")
    progress.finish(f"{progress.done - done:,.0f} tokens")


def _write_manifest(work: Path, teacher: Teacher, shards: TokenShards, request: dict[str, Any]) -> None:
    count = -(-shards.num_sequences // _part_sequences(shards))
    parts = [read_json(store_format.record_file(work, number)) for number in range(count)]
    per_token = flops_per_token(teacher.architecture(), shards.sequence_length)
    content = {
        "format": store_format.FORMAT,
        "digest": digest_json([request, [part["sha256"] for part in parts]]),
        "request": request,
        "teacher": {"name": teacher.name, "licence": teacher.licence},
        "tokens": shards.summary.to_json(),
        "num_tokens": shards.num_tokens,
        "flops": per_token * shards.num_tokens,
        "seconds": round(sum(part["seconds"] for part in parts), 3),  # of all workers together
        "environment": describe_environment().to_json(),
        "parts": parts,
    }
    store_format.write_manifest(work, content)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """Hold the work folder against other processes; an empty one is left behind by nobody.

    Raises:
        UserError: Another process has it, or it cannot be made.
    """
    work = store_format.work_folder(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / _LOCK_FILE).open("w")
    except OSError as error:
        raise explain_os_error(error, f"writing {work}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{work} is in use by another process: wait for it, or choose another --out") from error
        try:
            yield work
        finally:
            if work.is_dir() and [entry.name for entry in work.iterdir()] == [_LOCK_FILE]:
                (work / _LOCK_FILE).unlink()
                work.rmdir()


def _take_name(work: Path, out: Path) -> None:
    """Remove what only the work needed, and rename the folder."""
    try:
        for file in [*work.glob("part-*.json"), work / REQUEST_FILE, work / _LOCK_FILE]:
            file.unlink(missing_ok=True)
        work.rename(out)
        fsync_folder(out.parent)
    except OSError as error:
        raise explain_os_error(error, f"writing {out}") from error
