"""Writing a logit store: the teacher runs over token shards once, in parallel, and its signal is kept.

A store grows part by part beside its place and takes its name when it is whole. A part is a few seconds of work, is
written whole or not at all, and depends on nothing but the request: not on the number of workers, and not on who was
killed when. Workers run the teacher; this process writes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm_ray.config.digest import digest_json
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_count
from slm_ray.data.order import drawn_sequences
from slm_ray.data.shards import TokenShards
from slm_ray.data.tokenizers import tokenizer_digest
from slm_ray.distill.config import SAMPLED, TOP_K, CaptureConfig
from slm_ray.distill.store import (
    Array,
    LogitStore,
    id_type,
    part_sequences,
    record_file,
    unsigned,
    write_part,
)
from slm_ray.records.base import find_record, parse_record, write_record
from slm_ray.records.cost import flops_per_token
from slm_ray.records.data import first_difference, write_sealed
from slm_ray.records.files import explain_os_error, fsync_folder, read_json
from slm_ray.records.logits import (
    CapturedPart,
    CaptureProgress,
    CaptureRequest,
    StoreManifest,
    StoreTeacher,
    work_folder,
)
from slm_ray.runtime.environment import describe_environment
from slm_ray.runtime.fan_out import FanOut, Share
from slm_ray.runtime.locks import held
from slm_ray.runtime.progress import Console, Progress
from slm_ray.runtime.shared import local_copy

if TYPE_CHECKING:
    import torch

    from slm_ray.models.teachers import Teacher

LOG_FILE = "capture.log"
_LOCK_FILE = ".lock"
_FORWARD_TOKENS = {"cpu": 2048, "cuda": 1 << 15}


def make_request(
    config: CaptureConfig, teacher: Teacher, shards: TokenShards, *, documents: str, precision: str,
    num_sequences: int | None = None,
) -> CaptureRequest:  # fmt: skip
    """All that a store's content depends on, checked against the teacher.

    ``num_sequences``: Sequences to capture; None for all.
    """
    structure = teacher.architecture().structure
    own = tokenizer_digest(teacher.tokenizer())
    if own != shards.tokenizer_digest:
        raise UserError(
            f"the token shards {shards.folder} were made with tokenizer {shards.tokenizer_digest[:16]}, and teacher "
            f"{teacher.name} has {own[:16]}: prepare them with the teacher's own"
        )
    shards.check_ids(structure.vocab_size, f"the teacher {teacher.name}")
    drawn = config.kind == SAMPLED
    return CaptureRequest(
        kind=config.kind, k=None if drawn else config.k, draws=config.draws if drawn else None,
        seed=config.seed if drawn else None, temperature=config.temperature, documents=documents, precision=precision,
        teacher_digest=teacher.digest, tokenizer_digest=own, tokens_digest=shards.digest,
        vocab_size=min(structure.vocab_size, shards.vocab_size), sequence_length=shards.sequence_length,
        num_sequences=min(num_sequences or shards.num_sequences, shards.num_sequences),
        of_sequences=shards.num_sequences,
    )  # fmt: skip


def check_sizes(config: CaptureConfig, vocab_size: int, positions: int, sequence_length: int) -> None:
    """Check what is kept against the teacher's sizes."""
    if config.kind == TOP_K and config.k > vocab_size:
        raise UserError(f"--k must be from 1 to the teacher's {vocab_size:,} rows, got {config.k:,}")
    if sequence_length > positions:
        raise UserError(
            f"--sequence-length {sequence_length} is over the teacher's {positions} positions: give {positions} or less"
        )


def check_place(out: Path) -> None:
    """Make sure that a store could be put, or is, at ``out``."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise explain_os_error(error, f"reading {out}") from error
    if taken and not (out / StoreManifest.FILE).is_file():
        raise UserError(f"{out} is not empty and holds no logit store: choose another --out")


def capture(
    teacher: Teacher, shards: TokenShards, request: CaptureRequest, out: Path, *, console: Console, workers: int,
    threads: int, device: str = "cpu",
) -> LogitStore:  # fmt: skip
    """Make a store, or what is missing of it. Ray must have been started by the caller if there are workers."""
    check_place(out)
    work = work_folder(out)
    waits = f"another process captures {out}: waiting for it"
    with held(work / _LOCK_FILE, lambda: console.line(waits)):
        if (found := _find_store(out, work, request)) is not None:
            console.line(f"{out} holds this store already")
            _remove(work)
            return found
        if not (work / StoreManifest.FILE).is_file():
            write_record(work, CaptureProgress(request=request))
            console = Console(work / LOG_FILE, console.stream)
            make = functools.partial(_part_reader, teacher, shards.folder, request, device)
            fan_out = FanOut[int, tuple[dict[str, Array], float]](
                make, workers, Share(threads, 1 if device == "cuda" else 0), reads=(teacher.folder, shards.folder),
                name="capture worker", say=console.line,
            )  # fmt: skip
            with fan_out:
                _capture_parts(fan_out, work, request, console)
            _write_manifest(work, teacher, shards, request)
        _take_name(work, out)
    return LogitStore.open(out)


def _find_store(out: Path, work: Path, request: CaptureRequest) -> LogitStore | None:
    """The store of this request at ``out``, if it is there and whole."""
    if (work / StoreManifest.FILE).is_file():  # killed just before it took its name
        _check_same(work, "a store", LogitStore.open(work).request, request)
    elif (progress := find_record(work, CaptureProgress)) is not None:
        _check_same(work, "an unfinished store", progress.request, request)
    if (out / StoreManifest.FILE).is_file():
        store = LogitStore.open(out)
        _check_same(out, "a store", store.request, request)
        return store
    return None


def _check_same(folder: Path, what: str, before: CaptureRequest, request: CaptureRequest) -> None:
    if found := first_difference(before, request):
        raise UserError(f"{folder} holds {what} of another request (its {found}): delete it, or choose another --out")


def _capture_parts(
    fan_out: FanOut[int, tuple[dict[str, Array], float]], work: Path, request: CaptureRequest, console: Console
) -> None:
    """Capture every part that has no record yet."""
    size = part_sequences(request.num_sequences, request.sequence_length)
    counts = [min(size, request.num_sequences - first) for first in range(0, request.num_sequences, size)]
    missing = [number for number in range(len(counts)) if not record_file(work, number).is_file()]
    if not missing:
        return
    total = request.num_sequences * request.sequence_length
    done = total - sum(counts[number] for number in missing) * request.sequence_length
    if done:
        console.line(f"{len(counts) - len(missing)} of {len(counts)} parts are there already")
    progress = Progress(console, "capturing", total, "tokens", done)
    began = time.monotonic()
    for place, (arrays, seconds) in fan_out.run(missing):
        number = missing[place]
        write_part(work, number, number * size, counts[number], arrays, seconds)
        done_now = progress.done + counts[number] * request.sequence_length
        rate = (done_now - done) / (time.monotonic() - began)
        progress.update(done_now, f"{format_count(rate)} tokens/s")
    progress.finish(f"{progress.done - done:,.0f} tokens")


def _write_manifest(work: Path, teacher: Teacher, shards: TokenShards, request: CaptureRequest) -> None:
    count = -(-request.num_sequences // part_sequences(request.num_sequences, request.sequence_length))
    paths = [record_file(work, number) for number in range(count)]
    parts = tuple(parse_record(CapturedPart, read_json(path), str(path)) for path in paths)
    num_tokens = request.num_sequences * request.sequence_length
    write_sealed(work, StoreManifest(
        digest=digest_json([request.to_json(), [part.sha256 for part in parts]]), request=request,
        teacher=StoreTeacher(name=teacher.name, licence=teacher.licence), tokens=shards.summary, num_tokens=num_tokens,
        flops=flops_per_token(teacher.architecture(), request.sequence_length) * num_tokens,
        seconds=round(sum(part.seconds for part in parts), 3), environment=describe_environment(), parts=parts,
    ))  # fmt: skip


def _take_name(work: Path, out: Path) -> None:
    """Remove what only the work needed, and rename the folder."""
    try:
        for file in [*work.glob("part-*.json"), work / CaptureProgress.FILE, work / _LOCK_FILE]:
            file.unlink(missing_ok=True)
        work.rename(out)
        fsync_folder(out.parent)
    except OSError as error:
        raise explain_os_error(error, f"writing {out}") from error


def _remove(work: Path) -> None:
    """Remove a work folder that holds its lock alone."""
    if [entry.name for entry in work.iterdir()] == [_LOCK_FILE]:
        (work / _LOCK_FILE).unlink()
        work.rmdir()


def _part_reader(
    teacher: Teacher, shards: Path, request: CaptureRequest, device: str
) -> Callable[[int], tuple[dict[str, Array], float]]:
    """The function of a worker: the arrays of a part by its number, and the seconds they took."""
    import torch

    reader = SignalReader(teacher.here(), TokenShards.open(local_copy(shards)), request, device)
    size = part_sequences(request.num_sequences, request.sequence_length)

    def read(number: int) -> tuple[dict[str, Array], float]:
        began = time.monotonic()
        try:
            arrays = reader.read(number * size, min(size, request.num_sequences - number * size))
        except torch.OutOfMemoryError as error:
            raise UserError("the GPU's memory is too small for this teacher: give --device cpu") from error
        return arrays, time.monotonic() - began

    return read


class SignalReader:
    """Runs a teacher over sequences and gives the arrays of a part.

    Attributes:
        model: The teacher
        head: The rows of its output head that belong to token ids, ``[vocab_size, d]``
    """

    def __init__(self, teacher: Teacher, shards: TokenShards, request: CaptureRequest, device: str = "cpu") -> None:
        """Load the teacher; on a CPU its weights stay mapped from the file that all workers of a node share."""
        import torch

        from slm_ray.distill.online import teacher_model
        from slm_ray.models.lm_head import cap_of

        self.shards, self.request, self._device = shards, request, device
        self._captured = drawn_sequences(request.of_sequences, request.num_sequences)
        self.model: Any = teacher_model(
            teacher, torch.float32 if request.precision == "fp32" else torch.bfloat16, device
        )
        self.head: torch.Tensor = self.model.get_output_embeddings().weight[: request.vocab_size]
        self._cap = cap_of(self.model)

    def read(self, first: int, count: int) -> dict[str, Array]:
        """The arrays of captured sequences ``first`` to ``first + count - 1``; see :mod:`slm_ray.distill.store`."""
        import torch

        per_pass = max(1, _FORWARD_TOKENS[self._device] // self.shards.sequence_length)
        take = self._top if self.request.kind == TOP_K else self._drawn
        found = []
        with torch.inference_mode():
            for start in range(first, first + count, per_pass):
                indices = self._captured[start : min(start + per_pass, first + count)]
                found.append(take(self._hidden(indices), indices))
        arrays = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        if self.request.kind == SAMPLED:
            arrays["starts"] = np.append(0, arrays["lengths"].sum(1, dtype=np.int64).cumsum())
        return arrays

    def _hidden(self, indices: Array) -> torch.Tensor:
        """``[sequences * (length - 1), d]`` final hidden states at the tokens that predict one."""
        import torch

        from slm_ray.models.lm_head import final_hidden

        ids = torch.from_numpy(self.shards.rows(indices)).long().to(self._device)
        positions = None
        if self.request.documents == "separate":
            # transformers keeps attention between tokens whose positions follow each other.
            positions = torch.from_numpy(self.shards.positions(indices)).long().to(self._device)
        return final_hidden(self.model, ids, positions)[:, :-1].flatten(0, 1)

    def _top(self, hidden: torch.Tensor, indices: Array) -> dict[str, Array]:
        from slm_ray.distill.selection import top_k

        found = top_k(hidden, self.head, self.request.k or 1, self.request.temperature, self._cap)
        shape = (len(indices), self.shards.sequence_length - 1)
        return {
            "ids": found.ids.cpu().numpy().astype(id_type(len(self.head))).reshape(*shape, -1),
            "log_probs": found.log_probs.half().cpu().numpy().reshape(*shape, -1),
            "tail": found.tail_log_mass.half().cpu().numpy().reshape(shape),
        }

    def _drawn(self, hidden: torch.Tensor, indices: Array) -> dict[str, Array]:
        import torch

        from slm_ray.distill.selection import sample

        draws, seed = self.request.draws or 1, self.request.seed or 0
        shape = (self.shards.sequence_length - 1, draws)
        points = np.concatenate([draw_points(seed, int(index), *shape) for index in indices])
        at = torch.from_numpy(points).to(self._device)
        found = sample(hidden, self.head, at, self.request.temperature, self._cap)
        count_type = unsigned(draws)
        return {
            "lengths": found.lengths.cpu().numpy().astype(count_type).reshape(len(indices), -1),
            "ids": found.ids.cpu().numpy().astype(id_type(len(self.head))),
            "counts": found.counts.cpu().numpy().astype(count_type),
        }


def draw_points(seed: int, sequence: int, tokens: int, draws: int) -> Array:
    """float64 ``[tokens, draws]`` in ``[0, 1)``, decided by the seed and the sequence's number alone."""
    key = np.array([seed, sequence], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((tokens, draws))
