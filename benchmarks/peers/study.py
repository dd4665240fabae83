"""What all rows share: the teacher, the budget and the tokens."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import as_ids
from benchmarks.peers.activations import Activations, gather_activations
from benchmarks.peers.options import PeerOptions
from slm_ray.config.errors import UserError
from slm_ray.data.corpus import Corpus
from slm_ray.data.load import load_corpus
from slm_ray.data.sample import prepare_tokens
from slm_ray.data.shards import TokenShards
from slm_ray.data.split import CALIBRATION, HELD_OUT, TRAIN
from slm_ray.evaluate.text import held_out_shards
from slm_ray.models.precision import DTYPES, choose_precision
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.teachers import Teacher, load_teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.records.files import cache_folder, read_json, write_json
from slm_ray.runtime.progress import Console

_BATCH_TOKENS = 2048


@dataclass
class Spent:
    """What choosing a model cost.

    Attributes:
        seconds: On the clock.
        cpu_seconds: Of processors, this process's own; None where others did the work.
        flops: Matrix multiplications.
        parts: What the FLOPs are made of.
    """

    seconds: float = 0.0
    cpu_seconds: float | None = 0.0
    flops: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, flops: float) -> None:
        """Count some FLOPs."""
        self.flops += flops
        self.parts[name] = self.parts.get(name, 0.0) + flops

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of a block."""
        start, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - start
        self.cpu_seconds = (self.cpu_seconds or 0.0) + time.process_time() - cpu


class Study:
    """The teacher, the budget and the tokens of a comparison; each part is made when it is first asked for."""

    def __init__(self, options: PeerOptions) -> None:
        """Open one; the folder is made, and its options must be those it was begun with."""
        self.options, self.console = options, Console()
        options.out.mkdir(parents=True, exist_ok=True)
        self._keep_options()

    def _keep_options(self) -> None:
        path, now = self.options.out / "options.json", self.options.fixed()
        before = read_json(path) if path.is_file() else None
        if before is None:
            write_json(path, now)
            return
        changed = sorted(name for name in now if before.get(name) != now[name])
        if changed:
            name = changed[0]
            raise UserError(
                f"{self.options.out} was begun with {name} {before.get(name)}, not {now[name]}: rows of one table must "
                "be made alike; give the same, or another --out"
            )

    @property
    def out(self) -> Path:
        """Where everything goes."""
        return self.options.out

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher."""
        return load_teacher(self.options.teacher)

    @cached_property
    def architecture(self) -> Architecture:
        """The teacher's sizes."""
        return self.teacher.architecture()

    @property
    def limit(self) -> int:
        """The most parameters a model may have."""
        return int(self.options.share * num_params(self.architecture))

    @cached_property
    def precision(self) -> str:
        """``fp32`` or ``bf16``."""
        return choose_precision(self.options.precision)

    @cached_property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""
        return self.teacher.tokenizer()

    @cached_property
    def corpus(self) -> Corpus:
        """The text that is calibrated and trained on."""
        return load_corpus(self.options.data, "text", self.console)

    @cached_property
    def runner(self) -> SubnetRunner:
        """Runs the teacher's sub-networks in the type that is measured in."""
        state = self.teacher.state_as(DTYPES[self.precision])
        return SubnetRunner(state, self.teacher.config(), self.teacher.family())

    def teacher_flops(self, length: int | None = None) -> int:
        """FLOPs per token of the teacher's forward pass."""
        return flops_per_token(self.architecture, length or self.options.sequence_length)

    def tokens(self, part: str, count: int, length: int | None = None) -> TokenShards:
        """Packed tokens of one part of the text."""
        return prepare_tokens(
            self.corpus, self.tokenizer, part, num_tokens=count, console=self.console, cache=cache_folder() / "tokens",
            sequence_length=length or self.options.sequence_length,
        )  # fmt: skip

    @cached_property
    def calibration(self) -> torch.Tensor:
        """``[samples, length]`` train tokens that peers gather activations on."""
        options = self.options
        count = options.calibration_samples * options.calibration_length
        return as_ids(self.tokens(TRAIN, count, options.calibration_length))

    @cached_property
    def deciding(self) -> torch.Tensor:
        """``[sequences, length]`` calibration tokens by which a peer picks among its own models."""
        return as_ids(self.tokens(CALIBRATION, self.options.decide_tokens))

    def activations(self, spent: Spent) -> Activations:
        """Importance by activations, gathered once; whoever uses it pays for it in full.

        Args:
            spent: Takes the cost.
        """
        path, note = self.out / "activations.safetensors", self.out / "activations.json"
        if not note.is_file():
            mine = Spent()
            ids = self.calibration
            with mine.timed():
                found = gather_activations(self.runner, ids, max(1, _BATCH_TOKENS // ids.shape[1]))
            found.save(path)
            write_json(note, {"seconds": mine.seconds, "cpu_seconds": mine.cpu_seconds, "tokens": ids.numel()})
        cost = read_json(note)
        spent.seconds += cost["seconds"]
        spent.cpu_seconds = (spent.cpu_seconds or 0.0) + cost["cpu_seconds"]
        spent.add("activations", cost["tokens"] * float(self.teacher_flops(self.options.calibration_length)))
        return Activations.load(path)

    def training_shards(self, tokens: int) -> TokenShards:
        """Train tokens as shards: as many as are trained on, or all there are."""
        place = (self.out / f"train-{tokens}").resolve()
        if not place.is_dir():
            self._as_many(tokens).copy_to(place)
        return TokenShards.open(place)

    def _as_many(self, tokens: int) -> TokenShards:
        """So many train tokens, or fewer where the text has not so many: they are then read again."""
        length = self.options.sequence_length
        for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25, 0.1):
            count = int(tokens * share) // length * length
            try:
                return self.tokens(TRAIN, count)
            except UserError as error:
                reason = error
        raise reason

    def deciding_shards(self) -> TokenShards:
        """The calibration tokens as shards, on which a learning rate is chosen."""
        place = (self.out / "decide").resolve()
        if not place.is_dir():
            self.tokens(CALIBRATION, self.options.decide_tokens).copy_to(place)
        return TokenShards.open(place)

    @functools.cached_property
    def texts(self) -> dict[str, TokenShards]:
        """Held-out tokens by the name of their text: the one calibrated on, and the other one."""
        options = self.options
        made = {options.data: held_out_shards(
            self.corpus, self.tokenizer, eval_tokens=options.eval_tokens,
            sequence_length=options.sequence_length, num_bytes=None, console=self.console,
        )}  # fmt: skip
        if options.other:
            corpus = load_corpus(str(options.other), "text", self.console)
            made[options.other.stem] = held_out_shards(
                corpus, self.tokenizer, eval_tokens=options.other_tokens,
                sequence_length=options.sequence_length, num_bytes=None, console=self.console,
            )  # fmt: skip
        return made


def use_threads(count: int) -> None:
    """Let this process, and those it starts, compute on so many threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    torch.set_num_threads(count)


__all__ = ["CALIBRATION", "HELD_OUT", "TRAIN", "Spent", "Study", "use_threads"]
