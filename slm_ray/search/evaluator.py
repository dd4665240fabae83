"""Measures candidates: the teacher's weights mapped once, the calibration tokens at hand, every proxy by its name."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from slm_ray.models.extraction import extract
from slm_ray.models.lm_head import kl_divergences
from slm_ray.models.precision import DTYPES
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.scores import UnitScores
from slm_ray.models.teachers import Teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import num_params
from slm_ray.records.search import Measurement
from slm_ray.records.subnet import SubnetSpec, full_subnet
from slm_ray.runtime.fan_out import FanOut, Share
from slm_ray.runtime.hardware import seconds_of
from slm_ray.search.race import Rival, SequenceLosses, StagedLoss, StagedResult, batch_sequences, perplexity_of
from slm_ray.search.registry import PROXIES
from slm_ray.search.static import SCORE_SUMS
from slm_ray.search.tasks import Outcome
from slm_ray.search.vocabulary import WrittenText, measured_with

GPU_SHARE = 0.5
"""Of a GPU, for each worker: while one prepares its next candidate, another one's runs."""
# Of a weight in bf16; of activations, a candidate's own weights and CUDA itself.
_HALF_BYTES, _PASS_BYTES = 2, 3 << 30
_REPEATS = 5
LATENCY_PASSES = _REPEATS + 1  # one to warm up


@dataclass(frozen=True)
class EvaluatorSettings:
    """Everything a worker needs to measure candidates; small enough to send to each."""

    teacher: Teacher  # Where the teacher is
    precision: str  # ``fp32`` or ``bf16``: what is computed in
    ids: NDArray[np.int32]  # ``[sequences, length]`` calibration tokens
    proxies: tuple[str, ...] = ("perplexity",)  # The proxies to measure
    stage_tokens: tuple[int, ...] = ()  # Where early stages of staged proxies end
    confidence: float = 0.9  # One-sided confidence at which a candidate counts as beaten
    threads: int = 1  # Threads a worker computes with
    scores: dict[str, UnitScores] = field(default_factory=dict)  # Unit scores by method, for the proxies that need them
    device: str = "cpu"  # ``cpu`` or ``cuda``: what is computed on
    # The calibration text in smaller vocabularies, by their sizes
    written: Mapping[int, WrittenText] = field(default_factory=dict)

    @property
    def share(self) -> Share:
        """What a worker takes of a cluster."""
        return share_of(self.device, self.threads, self.teacher.architecture())


def share_of(device: str, threads: int, teacher: Architecture | None) -> Share:
    """What a process that computes on a device with some threads takes of a cluster.

    Every worker on a GPU holds the teacher: where two do not fit, one has it alone.
    """
    if device != "cuda" or teacher is None:
        return Share(cpus=threads, gpus=GPU_SHARE if device == "cuda" else 0)
    there = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else math.inf
    needed = 2 * (_HALF_BYTES * num_params(teacher) + _PASS_BYTES)
    return Share(cpus=threads, gpus=GPU_SHARE if needed <= there else 1)


class Evaluator:
    """Measures any number of candidates of one teacher, one after the other."""

    def __init__(self, settings: EvaluatorSettings) -> None:
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.device = torch.device(settings.device)
        self.ids = torch.from_numpy(settings.ids.astype(np.int64)).to(self.device)
        teacher = settings.teacher.here()
        self.config, self.family = teacher.config(), teacher.family()
        state = teacher.state_as(DTYPES[settings.precision])
        self.state = {name: tensor.to(self.device) for name, tensor in state.items()}
        self.runner = SubnetRunner(self.state, self.config, self.family)
        self._written = {size: text.to(self.device) for size, text in settings.written.items()}
        self._staged = StagedLoss(self.ids, settings.stage_tokens, settings.confidence)
        self._kl = TeacherKL(self.runner, self.ids) if "kl" in settings.proxies else None

    def evaluate(self, spec: SubnetSpec, rival: Rival | None = None) -> Outcome:
        """Measure one candidate with every proxy, not rounded yet.

        ``rival``: Whom its staged proxy has to beat; None to measure on all tokens.

        Raises:
            ValueError: A measurement is not a finite number.
        """
        start = time.perf_counter()
        measurements: dict[str, Measurement] = {}
        values: dict[str, float] = {}
        decided: Literal["full", "dominated"] = "full"
        for name in self.settings.proxies:
            if PROXIES[name].staged:
                began = time.perf_counter()
                found = self._staged.measure(self._losses(name, spec), rival)
                decided = "dominated" if found.is_beaten else "full"
                values[name] = perplexity_of(found.estimate) if name == "perplexity" else found.estimate
                measurements[name] = measurement_of(found, time.perf_counter() - began, name == "perplexity")
            else:
                measurements[name] = self._measure_once(name, spec)
                values[name] = measurements[name].value
        seconds = time.perf_counter() - start
        return Outcome(measurements=measurements, values=values, decided=decided, seconds=seconds)

    def _losses(self, name: str, spec: SubnetSpec) -> SequenceLosses:
        if name == "kl":
            assert self._kl is not None
            return partial(self._kl.losses, spec)
        if (text := measured_with(self._written, spec)) is not None:
            return lambda ids, first: text.per_token(
                self.runner.token_losses(spec, text.ids[first : first + len(ids)]), first
            )
        return lambda ids, _first: self.runner.token_losses(spec, ids)

    def _measure_once(self, name: str, spec: SubnetSpec) -> Measurement:
        start = time.perf_counter()
        if name == "latency":
            return _finite(name, *measure_latency(self.state, self.config, self.family, spec, self.ids.shape[1]))
        value = SCORE_SUMS[name](spec, self.settings.scores[PROXIES[name].scores or ""])
        return _finite(name, value, None, 0, time.perf_counter() - start)


def _finite(name: str, value: float, stderr: float | None, tokens: int, seconds: float) -> Measurement:
    if not math.isfinite(value):
        raise ValueError(f"its {name} is not a number ({value}): are the teacher's weights finite?")
    return Measurement(value=value, stderr=stderr, tokens=tokens, seconds=seconds)


def measurement_of(found: StagedResult, seconds: float, is_perplexity: bool = True) -> Measurement:
    """A staged loss as records have it; of a perplexity with its standard error by the delta method.

    Blocks stay losses in nats.
    """
    value = perplexity_of(found.mean) if is_perplexity else found.mean
    stderr = found.stderr
    if is_perplexity and stderr is not None:
        stderr *= value
    return Measurement(value=value, stderr=stderr, tokens=found.tokens, seconds=seconds, blocks=found.blocks)


class TeacherKL:
    """KL(teacher || candidate) at every position, over the whole vocabulary, in chunks.

    The teacher's final hidden states are computed once and kept (a few MB); its logits are remade chunk by chunk, since
    one row of logits is as large as 85 rows of hidden states.
    """

    def __init__(self, runner: SubnetRunner, ids: torch.Tensor) -> None:
        """Run the teacher over all calibration sequences.

        ``ids``: ``[sequences, length]`` calibration tokens.
        """
        self.runner = runner
        teacher = full_subnet(runner.teacher)
        batches = [runner.hidden_states(teacher, batch) for batch in ids.split(batch_sequences(ids.device))]
        self.teacher_hidden = torch.cat(batches)[:, :-1]

    @torch.no_grad()
    def losses(self, spec: SubnetSpec, ids: torch.Tensor, first: int) -> torch.Tensor:
        """``[batch, positions]`` divergences in nats of sequences ``first ..`` of the calibration tokens."""
        hidden = self.runner.hidden_states(spec, ids)[:, :-1].flatten(0, 1)
        teacher_hidden = self.teacher_hidden[first : first + len(ids)].flatten(0, 1)
        student = self.runner.project(hidden, spec)
        return kl_divergences(teacher_hidden, student, self.runner.head, self.runner.cap).view(len(ids), -1)


@torch.no_grad()
def measure_latency(
    state: Mapping[str, torch.Tensor], config: Any, family: Any, spec: SubnetSpec, sequence_length: int
) -> tuple[float, float, int, float]:
    """Seconds per token of a forward pass over one sequence: the median of five after one warm-up.

    Measured on the model the candidate would be, slicing not included. Returns seconds per token, their standard error,
    the sequence's tokens, and the seconds it all took.
    """
    start = time.perf_counter()
    student = extract(state, config, family, spec)
    device = next(student.parameters()).device
    ids = torch.arange(sequence_length, device=device)[None] % config.vocab_size
    passes = [
        seconds_of(lambda: student.base_model(ids, use_cache=False), device) / sequence_length
        for _ in range(LATENCY_PASSES)
    ]
    timed = np.array(passes[1:])
    stderr = float(timed.std(ddof=1) / np.sqrt(len(timed)))
    return float(np.median(timed)), stderr, sequence_length, time.perf_counter() - start


def _measurer(settings: EvaluatorSettings) -> Callable[[SubnetSpec], dict[str, Measurement]]:
    evaluator = Evaluator(settings)
    return lambda spec: evaluator.evaluate(spec).measurements


def measure_in_full(
    settings: EvaluatorSettings,
    specs: Mapping[int, SubnetSpec],
    workers: int | None,
    on_done: Callable[[int, dict[str, Measurement]], None],
) -> None:
    """Measure sub-networks with every proxy of ``settings``, on all of its tokens, with no rival to stop them."""
    trials = list(specs)
    make = partial(_measurer, settings)
    with FanOut[SubnetSpec, dict[str, Measurement]](
        make, workers, settings.share, reads=[settings.teacher.folder], name="measuring worker"
    ) as fan_out:
        for place, found in fan_out.run([specs[trial] for trial in trials]):
            on_done(trials[place], found)
