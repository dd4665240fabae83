"""Writing a logit store: the teacher runs over token shards once, in parallel, and what is wanted of it is kept.

A store grows part by part beside its place and takes its name when it is whole. A part is a few seconds of work, is
written whole or not at all, and depends on nothing but the request: not on the number of workers, and not on who was
killed when.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm_ray.architecture import flops_per_token
from slm_ray.core.digest import digest_json
from slm_ray.core.environment import describe_environment
from slm_ray.core.errors import UserError, unknown_name
from slm_ray.core.files import explain_os_error, fsync_folder, read_json, write_json
from slm_ray.core.progress import Console, Progress
from slm_ray.core.units import format_count
from slm_ray.data.shards import TokenShards
from slm_ray.distill import store_format
from slm_ray.distill.online import teacher_model
from slm_ray.distill.selection import sample, top_k
from slm_ray.distill.store import LogitStore, difference
from slm_ray.distill.store_format import LOG_FILE, REQUEST_FILE, SAMPLED, STORE_KINDS, TOP_K, Array
from slm_ray.models.teachers import Teacher

DOCUMENTS = ("separate", "joined")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEVICES = ("cpu", "cuda")
_FORWARD_TOKENS = {"cpu": 2048, "cuda": 1 << 15}
_LOCK_FILE = ".lock"


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """What is kept of the teacher.

    Attributes:
        kind: ``top-k`` (with the mass of all other words) or ``sampled``.
        k: Words kept of every token, for ``top-k``.
        draws: Draws from the teacher's distribution, for ``sampled``.
        temperature: What logits are divided by.
        seed: Of the draws.
        documents: ``separate``: no token attends to another document; ``joined``: to all before it in its sequence.
        precision: ``fp32`` or ``bf16``.
    """

    kind: str
    k: int = 32
    draws: int = 50
    temperature: float = 1.0
    seed: int = 0
    documents: str = "separate"
    precision: str = "fp32"

    def check(self, vocab_size: int) -> None:
        """Check everything against the rules and the teacher's vocabulary.

        Raises:
            UserError: A value breaks its rule.
        """
        for what, name, names in (
            ("kind of logit store", self.kind, STORE_KINDS),
            ("way with documents", self.documents, DOCUMENTS),
            ("precision", self.precision, tuple(PRECISIONS)),
        ):
            if name not in names:
                raise unknown_name(what, name, names)
        if self.kind == TOP_K and not 1 <= self.k <= vocab_size:
            raise UserError(f"--k must be from 1 to the teacher's {vocab_size:,} words, got {self.k:,}")
        if self.kind == SAMPLED and not 1 <= self.draws <= np.iinfo(np.uint16).max:
            raise UserError(f"--draws must be from 1 to {np.iinfo(np.uint16).max:,}, got {self.draws:,}")
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise UserError(f"--temperature must be above 0 and finite, got {self.temperature:g}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more, got {self.seed}")

    def request(self, teacher: Teacher, shards: TokenShards) -> dict[str, Any]:
        """All that a store's content depends on, as JSON-like values."""
        own = {"k": self.k} if self.kind == TOP_K else {"draws": self.draws, "seed": self.seed}
        return {
            "kind": self.kind,
            **own,
            "temperature": float(self.temperature),
            "documents": self.documents,
            "precision": self.precision,
            "teacher_digest": teacher.digest,
            "tokenizer_digest": shards.tokenizer_digest,
            "tokens_digest": shards.digest,
            "vocab_size": teacher.architecture().structure.vocab_size,
            "sequence_length": shards.sequence_length,
            "num_sequences": shards.num_sequences,
        }


def choose_precision(wanted: str, device: str) -> str:
    """What ``auto`` stands for: ``bf16`` where it is multiplied natively, else ``fp32``."""
    if wanted != "auto":
        return wanted
    return "bf16" if device == "cuda" or torch.cpu._is_amx_tile_supported() else "fp32"


class SignalReader:
    """Runs a teacher over sequences and gives the arrays of a part."""

    def __init__(self, teacher: Teacher, shards: TokenShards, settings: CaptureSettings, device: str = "cpu") -> None:
        """Load the teacher; on a CPU its weights stay mapped from the file that all workers of a node share."""
        self.shards, self._settings, self._device = shards, settings, device
        self._model = teacher_model(teacher, PRECISIONS[settings.precision], device)
        self._head = self._model.get_output_embeddings().weight

    @torch.inference_mode()
    def read(self, first: int, count: int) -> dict[str, Array]:
        """The arrays of sequences ``first`` to ``first + count - 1``; see :mod:`slm_ray.distill.store_format`."""
        per_pass = max(1, _FORWARD_TOKENS[self._device] // self.shards.sequence_length)
        take = self._top if self._settings.kind == TOP_K else self._drawn
        found = []
        for start in range(first, first + count, per_pass):
            indices = np.arange(start, min(start + per_pass, first + count), dtype=np.int64)
            found.append(take(self._hidden(indices), indices))
        arrays = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        if self._settings.kind == SAMPLED:
            arrays["starts"] = np.append(0, arrays["lengths"].sum(1, dtype=np.int64).cumsum())
        return arrays

    def _hidden(self, indices: Array) -> torch.Tensor:
        """``[sequences * (length - 1), d]`` final hidden states at the tokens that predict one."""
        ids = torch.from_numpy(self.shards.rows(indices)).long().to(self._device)
        positions = None
        if self._settings.documents == "separate":
            # transformers keeps attention between tokens whose positions follow each other.
            positions = torch.from_numpy(self.shards.positions(indices)).long().to(self._device)
        states = self._model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        return states[:, :-1].flatten(0, 1)

    def _top(self, hidden: torch.Tensor, indices: Array) -> dict[str, Array]:
        found = top_k(hidden, self._head, self._settings.k, self._settings.temperature)
        shape = (len(indices), self.shards.sequence_length - 1)
        return {
            "ids": found.ids.cpu().numpy().astype(store_format.id_type(len(self._head))).reshape(*shape, -1),
            "log_probs": found.log_probs.half().cpu().numpy().reshape(*shape, -1),
            "tail": found.tail_log_mass.half().cpu().numpy().reshape(shape),
        }

    def _drawn(self, hidden: torch.Tensor, indices: Array) -> dict[str, Array]:
        shape = (self.shards.sequence_length - 1, self._settings.draws)
        points = np.concatenate([draw_points(self._settings.seed, int(index), *shape) for index in indices])
        at = torch.from_numpy(points).to(self._device)
        found = sample(hidden, self._head, at, self._settings.temperature)
        count_type = store_format.unsigned(self._settings.draws)
        return {
            "lengths": found.lengths.cpu().numpy().astype(count_type).reshape(len(indices), -1),
            "ids": found.ids.cpu().numpy().astype(store_format.id_type(len(self._head))),
            "counts": found.counts.cpu().numpy().astype(count_type),
        }


def draw_points(seed: int, sequence: int, tokens: int, draws: int) -> Array:
    """float64 ``[tokens, draws]`` in ``[0, 1)``, decided by the seed and the sequence's number alone."""
    key = np.array([seed, sequence], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((tokens, draws))


@dataclass(frozen=True)
class _Job:
    """What every worker is given."""

    teacher: Teacher
    shards: Path
    settings: CaptureSettings
    device: str
    threads: int
    work: Path
    part_sequences: int


class _Capturer:
    """A Ray Data actor: captures part after part with one teacher."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._reader: SignalReader | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Capture one part; what a user can mend is handed back as a sentence."""
        try:
            return {"sequences": self._capture(int(row["part"])), "error": ""}
        except UserError as error:
            return {"sequences": 0, "error": str(error)}
        except torch.OutOfMemoryError:
            return {"sequences": 0, "error": "the GPU's memory is too small for this teacher: give --device cpu"}

    def _capture(self, number: int) -> int:
        job, began = self._job, time.monotonic()
        if self._reader is None:
            torch.set_num_threads(job.threads)
            self._reader = SignalReader(job.teacher, TokenShards.open(job.shards), job.settings, job.device)
        first = number * job.part_sequences
        count = min(job.part_sequences, self._reader.shards.num_sequences - first)
        store_format.write_part(job.work, number, first, count, self._reader.read(first, count), began)
        return count


def find_store(out: Path, request: Mapping[str, Any]) -> LogitStore | None:
    """The store of this request at ``out``, if it is there and whole.

    Raises:
        UserError: There is a store of another request, finished or not.
    """
    work = store_format.work_folder(out)
    if (work / REQUEST_FILE).is_file():
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
            job = _Job(teacher, shards.folder, settings, device, threads, work.resolve(), _part_sequences(shards))
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
    settings.check(structure.vocab_size)
    if shards.sequence_length > structure.max_position_embeddings:
        raise UserError(
            f"--sequence-length {shards.sequence_length} is over the teacher's {structure.max_position_embeddings} "
            "positions: give fewer"
        )
    own = tokenizer_digest(teacher.tokenizer())
    if own != shards.tokenizer_digest or shards.vocab_size > structure.vocab_size:
        raise UserError(
            f"the token shards {shards.folder} were made with tokenizer {shards.tokenizer_digest[:16]} of "
            f"{shards.vocab_size:,} words, and teacher {teacher.name} has {own[:16]} and {structure.vocab_size:,} "
            "words: prepare them with the teacher's own"
        )


def _part_sequences(shards: TokenShards) -> int:
    return store_format.part_sequences(shards.num_sequences, shards.sequence_length)


def _capture_parts(job: _Job, shards: TokenShards, console: Console, workers: int) -> None:
    """Capture every part that has no record yet."""
    count = -(-shards.num_sequences // job.part_sequences)
    missing = [number for number in range(count) if not store_format.record_file(job.work, number).is_file()]
    done = shards.num_tokens - sum(
        min(job.part_sequences, shards.num_sequences - number * job.part_sequences) for number in missing
    ) * shards.sequence_length
    if not missing:
        return
    if done:
        console.line(f"{count - len(missing)} of {count} parts are there already")
    progress = Progress(console, "capturing", shards.num_tokens, "tokens", done)
    began = time.monotonic()
    for sequences in _finished_parts(job, missing, min(workers, len(missing))):
        done_now = progress.done + sequences * shards.sequence_length
        rate = (done_now - done) / (time.monotonic() - began)
        progress.update(done_now, f"{format_count(rate)} tokens/s")
    progress.finish(f"{progress.done - done:,.0f} tokens")


def _finished_parts(job: _Job, parts: list[int], workers: int) -> Iterator[int]:
    """Run parts through Ray Data: the sequences of each as it is finished."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with _quiet(), ray.data.DataContext.current(context):
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map(
            _Capturer,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=job.threads,
            num_gpus=1 if job.device == "cuda" else None,
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


def _write_manifest(work: Path, teacher: Teacher, shards: TokenShards, request: dict[str, Any]) -> None:
    count = -(-shards.num_sequences // _part_sequences(shards))
    parts = [read_json(store_format.record_file(work, number)) for number in range(count)]
    per_token = flops_per_token(teacher.architecture(), shards.sequence_length)
    content = {
        "format": store_format.FORMAT,
        "digest": digest_json([request, [part["sha256"] for part in parts]]),
        "request": request,
        "teacher": {"name": teacher.name, "licence": teacher.licence},
        "tokens": shards.describe(),
        "num_tokens": shards.num_tokens,
        "flops": per_token * shards.num_tokens,
        "seconds": round(sum(part["seconds"] for part in parts), 3),  # of all workers together
        "environment": describe_environment(),
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
