"""What a model costs to run: prefill and decode rates, latencies, memory, cache, FLOPs, energy."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import gc
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slm_ray.evaluate.models import LoadedModel, embedding_rows
from slm_ray.evaluate.ticker import Ticker
from slm_ray.models.families import context_length
from slm_ray.records.measurement import EfficiencyFigures, EnergyFigures, Latency, MemoryFigures, SpeedFigures
from slm_ray.runtime.energy import EnergyMeter
from slm_ray.runtime.environment import describe_environment
from slm_ray.runtime.hardware import Effort, PeakMemory, distribution_ms, synchronize, time_runs

F = TypeVar("F")
# Tokens of prompts, and prompts at once: every length with the smallest batch, every batch with the shortest length.
_LENGTHS = {"cpu": (128, 512), "cuda": (128, 512, 2048)}
_BATCHES = {"cpu": (1, 4), "cuda": (1, 8, 32)}
_MOST_STEPS = 64  # a context that is decoded after grows by at most this
_FLOPS_LENGTH = 512  # FLOPs per token are given for a sequence of this length
_MEMORY_STEPS, _WARM_TOKENS = 4, 8
_STEPS_PER_RUN = 5  # a step is short: so many times the runs of a prefill


def cache_bytes(cache: Any) -> int | None:
    """Bytes of the keys and values in a cache; None where there are none to be found."""
    tensors = [
        tensor
        for layer in getattr(cache, "layers", ())
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(tensor, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) or None


@torch.no_grad()
def counted_flops(model: Any, ids: torch.Tensor) -> int:
    """Matrix-multiplication FLOPs of one forward pass over ids ``[batch, length]``, as torch counts them."""
    # The plain kernel: torch has no count of the fused one for processors.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids, use_cache=False)
    return int(counter.get_total_flops())


def shapes_that_fit(
    context: int | None, lengths: Sequence[int], batches: Sequence[int], steps: int
) -> list[tuple[int, int]]:
    """Pairs of a prompt length and a batch, with room for ``steps`` tokens; half the context where no length fits."""
    fitting = [length for length in sorted(lengths) if not context or length + steps <= context]
    fitting = fitting or [max(1, (context or 2) // 2)]
    pairs = [(length, min(batches)) for length in fitting] + [(fitting[0], batch) for batch in sorted(batches)]
    return list(dict.fromkeys(pairs))


class Bench:
    """One model in the type that it is served in, random prompts, and the measurements of both."""

    def __init__(self, loaded: LoadedModel, effort: Effort) -> None:
        """Take the model, or a copy of it in bf16: autocast would cast every weight anew for every token."""
        self.device, self.dtype, self.effort = loaded.device, torch.bfloat16 if loaded.bf16 else torch.float32, effort
        self.model = copy.deepcopy(loaded.model).to(torch.bfloat16) if loaded.bf16 else loaded.model
        self.context = context_length(self.model.config)
        self.most_steps = min(_MOST_STEPS, max(1, (self.context or 4 * _MOST_STEPS) // 4))
        takes = inspect.signature(self.model.forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"  # transformers renamed it
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def weight_bytes(self) -> int:
        """Of its parameters, tied ones counted once."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    def prompt(self, batch: int, length: int) -> torch.Tensor:
        """``[batch, length]`` random token ids, the same every time."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(embedding_rows(self.model), (batch, length), generator=generator).to(self.device)

    @torch.no_grad()
    def read(self, ids: torch.Tensor, cache: Any = None) -> tuple[Any, torch.Tensor]:
        """Read ids ``[batch, length]`` behind a cache: the new cache, and the likeliest next ids ``[batch, 1]``."""
        options = self._options if cache is None else self._options | {self._cache_name: cache}
        output = self.model(ids, use_cache=True, **options)
        return getattr(output, self._cache_name, None), output.logits[:, -1].argmax(-1, keepdim=True)

    def prefill(self, length: int, batch: int) -> SpeedFigures:
        """Reading a batch of prompts: latencies, and the rate at the median one."""
        ids = self.prompt(batch, length)
        times = time_runs(lambda: self.read(ids), self.device, self.effort)
        return _speed(length, batch, batch * length, times)

    def decode(self, length: int, batch: int) -> SpeedFigures:
        """Steps after a context: latencies of one token for each text, and the rate at the median one."""
        effort = dataclasses.replace(self.effort, least_runs=_STEPS_PER_RUN * self.effort.least_runs)
        return _speed(length, batch, batch, self._step_times(length, batch, effort))

    def _step_times(self, length: int, batch: int, effort: Effort) -> list[float]:
        """Seconds of each step; texts begin anew after ``most_steps``, so that the context stays near its length."""
        ids = self.prompt(batch, length)
        times: list[float] = []
        while not effort.is_enough(len(times), sum(times)):
            cache, tokens = self.read(ids)
            for number in range(self.most_steps):
                synchronize(self.device)
                start = time.perf_counter()
                cache, tokens = self.read(tokens, cache)
                synchronize(self.device)
                if number >= min(effort.warm_up, self.most_steps - 1):
                    times.append(time.perf_counter() - start)
                if effort.is_enough(len(times), sum(times)):
                    break
        return times

    @torch.no_grad()
    def memory(self, length: int, batch: int) -> MemoryFigures:
        """The most memory that reading a batch and generating a few tokens needs, above what is held before.

        To be measured before anything else of its kind has run: memory kept from that would be reused unseen.
        """
        ids = self.prompt(batch, length)
        for parameter in self.model.parameters():
            parameter.sum()  # weights of a mapped file are not in memory before
        self.read(self.prompt(1, min(_WARM_TOKENS, length)))  # what is set up once is no prompt's
        _trim_heap()
        with PeakMemory(self.device) as peak:
            cache, tokens = self.read(ids)
            for _ in range(min(_MEMORY_STEPS, self.most_steps) if cache is not None else 0):
                cache, tokens = self.read(tokens, cache)
        return MemoryFigures(above_weights_bytes=peak.bytes, prompt_tokens=length, batch=batch, source=peak.source)

    def energy(self, length: int, batch: int) -> EnergyFigures:
        """Joules per token of decoding, of the whole machine while it does so; None where nothing measures them."""
        meter = EnergyMeter()
        if not meter.can_measure:
            return EnergyFigures(joules_per_token=None, source=meter.stop().source)
        meter.start()
        times = self._step_times(length, batch, self.effort)
        used = meter.stop()
        per_token = None if used.joules is None else used.joules / (batch * len(times))
        of = f"decoding {batch} texts at once after {length} tokens, with the reading of these"
        return EnergyFigures(joules_per_token=per_token, source=used.source, of=of)


def _speed(length: int, batch: int, tokens: int, times: Sequence[float]) -> SpeedFigures:
    latency = Latency(**distribution_ms(times))
    rate = 1e3 * tokens / latency.median
    return SpeedFigures(tokens=length, batch=batch, tokens_per_second=rate, latency_ms=latency, runs=len(times))


def _trim_heap() -> None:
    """Trim the heap, so that peak memory is measured correctly."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def measure_efficiency(
    loaded: LoadedModel, *, say: Callable[[str], None], lengths: Sequence[int] | None = None,
    batches: Sequence[int] | None = None, effort: Effort | None = None,
) -> EfficiencyFigures:  # fmt: skip
    """Measure what a model costs to run, with transformers' own forward pass and cache and no tokenizer.

    Rates per second are at the median latency. Memory is that of the largest shape, weights included.
    """
    bench, notes = Bench(loaded, effort or Effort()), list[str]()
    kind = bench.device.type
    shapes = shapes_that_fit(bench.context, lengths or _LENGTHS[kind], batches or _BATCHES[kind], bench.most_steps)
    ticker = Ticker(say, "efficiency", 2 * len(shapes) + 1, "measurements")

    def rows(measure: Callable[[int, int], F], wanted: Sequence[tuple[int, int]]) -> tuple[F, ...]:
        found = []
        for length, batch in wanted:
            try:
                found.append(measure(length, batch))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                notes.append(f"{batch} texts of {length} tokens at once do not fit the GPU's memory: left out")
            ticker.advance(1)
        return tuple(found)

    memory = next(iter(rows(bench.memory, [max(shapes, key=lambda shape: shape[0] * shape[1])])), None)
    cached = cache_bytes(bench.read(bench.prompt(1, shapes[0][0]))[0])
    if cached is None:
        notes.append("it keeps no key-value cache that could be measured: no decoding")
    flops_ids = bench.prompt(1, min(_FLOPS_LENGTH, bench.context or _FLOPS_LENGTH))
    prefill, decode = rows(bench.prefill, shapes), rows(bench.decode, shapes) if cached else ()
    energy = EnergyFigures(joules_per_token=None, source="unknown: nothing was decoded")
    cuda = kind == "cuda"
    return EfficiencyFigures(
        params=loaded.params, weights_bytes=bench.weight_bytes,
        flops_per_token=counted_flops(bench.model, flops_ids) / flops_ids.shape[1],
        flops_sequence_length=flops_ids.shape[1], kv_bytes_per_token=cached and cached / shapes[0][0],
        peak_memory_bytes=bench.weight_bytes + memory.above_weights_bytes if memory else None, memory=memory,
        prefill=prefill, decode=decode, energy=bench.energy(*shapes[0]) if decode else energy,
        threads=torch.get_num_threads(), device=kind,
        device_name=torch.cuda.get_device_name(bench.device) if cuda else describe_environment().cpu,
        precision="bf16" if bench.dtype == torch.bfloat16 else "fp32", notes=tuple(notes),
    )  # fmt: skip
