"""What a model costs to run: rates, latencies, memory, cache, FLOPs, energy."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import gc
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.ticker import Ticker
from slm_ray.models.families import config_architecture, context_length
from slm_ray.records.cost import flops_per_token, kv_bytes_per_token
from slm_ray.records.measurement import (
    DecodeFigures,
    EfficiencyFigures,
    EnergyFigures,
    Latency,
    MemoryFigures,
    PrefillFigures,
)
from slm_ray.runtime.energy import EnergyMeter
from slm_ray.runtime.environment import describe_environment
from slm_ray.runtime.hardware import (
    Effort,
    Neighbours,
    PeakMemory,
    distribution_ms,
    matmul_flops_per_second,
    peak_flops,
    seconds_of,
    time_runs,
)

_SEED = 0


@dataclass(frozen=True)
class Read:
    """Where a batch of texts stands.

    Attributes:
        cache: The model's key-value cache; None where it keeps none.
        tokens: ``[batch, 1]`` the next tokens, not read yet.
    """

    cache: Any
    tokens: torch.Tensor


def cache_bytes(cache: Any) -> int | None:
    """Bytes of the keys and values in a cache; None where there are none to be found."""
    tensors = [
        tensor
        for layer in getattr(cache, "layers", ())
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(tensor, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) or None


class Serving:
    """A model in the type that it is served in, random prompts, and the two kinds of steps."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Take the model as it is, or a copy of it in bf16: autocast would cast every weight anew for every token.

        Args:
            loaded: The model.
        """
        self.device, self.dtype = loaded.device, torch.bfloat16 if loaded.bf16 else torch.float32
        self.model = copy.deepcopy(loaded.model).to(torch.bfloat16) if loaded.bf16 else loaded.model
        takes = inspect.signature(self.model.forward).parameters
        self.last_logits_only = "logits_to_keep" in takes
        self._cache_name = "cache" if "cache" in takes else "past_key_values"  # transformers renamed it
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if self.last_logits_only else {}
        self._vocabulary = int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def weight_bytes(self) -> int:
        """Of its parameters, tied ones counted once."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    @torch.no_grad()
    def touch_weights(self) -> None:
        """Read every weight once: those of a mapped file are not in memory before."""
        for parameter in self.model.parameters():
            parameter.sum()

    def prompt(self, batch: int, length: int) -> torch.Tensor:
        """``[batch, length]`` random token ids, the same every time."""
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randint(self._vocabulary, (batch, length), generator=generator).to(self.device)

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> Read:
        """Read prompts: all their keys and values, and the next token.

        Args:
            ids: ``[batch, length]``.
        """
        return self._forward(ids, None)

    @torch.no_grad()
    def step(self, at: Read) -> Read:
        """Read the last tokens, and give the next: the likeliest."""
        return self._forward(at.tokens, at.cache)

    def _forward(self, ids: torch.Tensor, cache: Any) -> Read:
        options = self._last_only if cache is None else self._last_only | {self._cache_name: cache}
        output = self.model(ids, use_cache=True, **options)
        return Read(getattr(output, self._cache_name, None), output.logits[:, -1].argmax(-1, keepdim=True))

    def time_reading(self, batch: int, length: int, effort: Effort) -> list[float]:
        """Seconds that reading a batch of prompts takes, run by run."""
        ids = self.prompt(batch, length)
        return time_runs(lambda: self.read(ids), self.device, effort)

    def time_steps(self, batch: int, context: int, most_steps: int, effort: Effort) -> list[float]:
        """Seconds that a step takes (a token for each text of the batch), step by step.

        Args:
            batch: Texts at once.
            context: Tokens of them that are read before the first step.
            most_steps: After that many the texts begin anew, so that the context stays near what it should be.
            effort: How many steps; each reading is followed by those of the warm-up, which are not counted.
        """
        ids = self.prompt(batch, context)
        times: list[float] = []
        while not effort.is_enough(len(times), sum(times)):
            walk = _Walk(self.step, self.read(ids))
            for number in range(most_steps):
                seconds = seconds_of(walk.go, self.device)
                if number >= min(effort.warm_up, most_steps - 1):
                    times.append(seconds)
                if effort.is_enough(len(times), sum(times)):
                    break
        return times


class _Walk:
    """Remembers where a batch stands from step to step."""

    def __init__(self, step: Callable[[Read], Read], at: Read) -> None:
        self._step, self.at = step, at

    def go(self) -> None:
        self.at = self._step(self.at)



F = TypeVar("F")
# Tokens of prompts, and prompts at once: every length with the smallest batch, every batch with the shortest length.
_LENGTHS = {"cpu": (128, 512), "cuda": (128, 512, 2048)}
_BATCHES = {"cpu": (1, 4), "cuda": (1, 8, 32)}
_MOST_STEPS = 64  # a context that is decoded after grows by at most this
_FLOPS_LENGTH = 512  # FLOPs per token are given for a sequence of this length
_BUSY = 0.1  # above this share of the processors, the work of others is worth a note
_MEMORY_STEPS, _WARM_TOKENS = 4, 8
_STEPS_PER_RUN = 5  # a step is short: so many times the runs of a prefill
SIZES, COUNTED = "sizes", "counted by torch"


def shapes_that_fit(
    context: int | None, lengths: Sequence[int], batches: Sequence[int], steps: int
) -> list[tuple[int, int]]:
    """Pairs of a prompt length and a batch to measure; half the context where no length given fits.

    Args:
        context: The model's positions; None where they have no end.
        lengths: Tokens of prompts.
        batches: Prompts at once.
        steps: Tokens that have to fit after a prompt.
    """
    fitting = [length for length in sorted(lengths) if not context or length + steps <= context]
    fitting = fitting or [max(1, (context or 2) // 2)]
    pairs = [(length, min(batches)) for length in fitting] + [(fitting[0], batch) for batch in sorted(batches)]
    return list(dict.fromkeys(pairs))


def measure_efficiency(
    loaded: LoadedModel, *, say: Callable[[str], None], lengths: Sequence[int] | None = None,
    batches: Sequence[int] | None = None, effort: Effort | None = None,
) -> EfficiencyFigures:  # fmt: skip
    """Measure what a model costs to run, with transformers' own forward pass and cache and no tokenizer.

    Args:
        loaded: The model; in bf16, a copy of it with bf16 weights is measured.
        say: Takes lines of progress.
        lengths: Tokens of prompts.
        batches: Prompts at once.
        effort: How much is spent on each figure.

    Returns:
        Rates per second at the median latency, latencies in milliseconds. Memory is that of the largest shape, weights
        included.
    """
    serving, neighbours = Serving(loaded), Neighbours()
    kind, context = serving.device.type, context_length(serving.model.config)
    steps = min(_MOST_STEPS, max(1, (context or 4 * _MOST_STEPS) // 4))
    shapes = shapes_that_fit(context, lengths or _LENGTHS[kind], batches or _BATCHES[kind], steps)
    bench, notes = Bench(serving, steps, effort or Effort()), list[str]()
    ticker = Ticker(say, "efficiency", 2 * len(shapes) + 1, "measurements")

    def rows(measure: Callable[[int, int], F], wanted: Sequence[tuple[int, int]]) -> list[F]:
        found = []
        for length, batch in wanted:
            try:
                found.append(measure(length, batch))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                notes.append(f"{batch} texts of {length} tokens at once do not fit the GPU's memory: left out")
            ticker.advance(1)
        return found

    memory = rows(bench.memory, [max(shapes, key=lambda shape: shape[0] * shape[1])])  # first: see there
    sizes = _sizes(serving, shapes[0][0], notes)
    matmul = matmul_flops_per_second(serving.device, serving.dtype)
    prefill = rows(bench.prefill, shapes)
    decode = rows(bench.decode, shapes) if sizes["kv_bytes_per_token"] else []
    energy = EnergyFigures(joules_per_token=None, source="unknown: nothing was decoded")
    if decode:
        energy = bench.energy(*shapes[0])
    matmul = max(matmul, matmul_flops_per_second(serving.device, serving.dtype))  # the faster, of before and after
    prefill = [row.model_copy(update={"mfu": row.flops_per_second / matmul}) for row in prefill]
    if (share := neighbours.share()) > _BUSY:
        busy = f"{100 * share:.0f}%"
        notes.append(f"other processes used {busy} of the processors meanwhile: rates are lower than they could be")
    return EfficiencyFigures(
        **sizes, **_machine(serving), memory=memory[0] if memory else None,
        peak_memory_bytes=serving.weight_bytes + memory[0].above_weights_bytes if memory else None,
        prefill=tuple(prefill), decode=tuple(decode), energy=energy, matmul_flops_per_second=matmul,
        mfu_prefill=max((row.mfu or 0.0 for row in prefill), default=None), others_cpu_share=share, notes=tuple(notes),
    )  # fmt: skip


def _sizes(serving: Serving, length: int, notes: list[str]) -> dict[str, Any]:
    """Parameters, weights, FLOPs and cache; the cache is measured, and compared with what the sizes say."""
    config = serving.model.config
    flops_length = min(_FLOPS_LENGTH, context_length(config) or _FLOPS_LENGTH)
    flops, flops_source = token_flops(serving.model, serving.prompt(1, flops_length))
    cached, architecture = cache_bytes(serving.read(serving.prompt(1, length)).cache), config_architecture(config)
    measured = None if cached is None else cached / length
    expected = None if architecture is None else kv_bytes_per_token(architecture, serving.dtype.itemsize)
    if measured is None:
        notes.append("it keeps no key-value cache that could be measured: no decoding")
    elif expected is not None and measured != expected:
        notes.append(f"its cache holds {measured:,.0f} bytes per token where its sizes say {expected:,}")
    return {
        "params": sum(parameter.numel() for parameter in serving.model.parameters()),
        "weights_bytes": serving.weight_bytes, "flops_per_token": flops, "flops_sequence_length": flops_length,
        "flops_source": flops_source, "kv_bytes_per_token": measured, "kv_bytes_per_token_expected": expected,
    }  # fmt: skip


def _machine(serving: Serving) -> dict[str, Any]:
    """The machine it runs on, and the compute type."""
    precision, device = "bf16" if serving.dtype == torch.bfloat16 else "fp32", serving.device
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else describe_environment().cpu
    return {
        "peak_flops_per_second": peak_flops(name, precision) if cuda else None, "threads": torch.get_num_threads(),
        "device": device.type, "device_name": name, "precision": precision,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures one model: a prefill's figures, a decoding step's, its memory, its energy.

    Attributes:
        serving: The model.
        most_steps: Tokens that are generated after a context before it is read anew.
        effort: How much is spent on a figure.
    """

    serving: Serving
    most_steps: int
    effort: Effort

    def prefill(self, length: int, batch: int) -> PrefillFigures:
        """Reading a batch of prompts: latencies, and rates at the median one."""
        times = self.serving.time_reading(batch, length, self.effort)
        latency, ids = Latency(**distribution_ms(times)), self.serving.prompt(batch, length)
        flops = reading_flops(self.serving.model, ids, last_only=self.serving.last_logits_only)
        return PrefillFigures(
            prompt_tokens=length, batch=batch, tokens_per_second=1e3 * batch * length / latency.median,
            flops_per_second=1e3 * flops / latency.median, latency_ms=latency, runs=len(times),
        )  # fmt: skip

    def decode(self, length: int, batch: int) -> DecodeFigures:
        """Steps after a context: latencies of one token for each text, and the rate at the median one."""
        effort = dataclasses.replace(self.effort, least_runs=_STEPS_PER_RUN * self.effort.least_runs)
        times = self.serving.time_steps(batch, length, self.most_steps, effort)
        latency = Latency(**distribution_ms(times))
        return DecodeFigures(
            context_tokens=length, batch=batch, tokens_per_second=1e3 * batch / latency.median, latency_ms=latency,
            runs=len(times),
        )  # fmt: skip

    def memory(self, length: int, batch: int) -> MemoryFigures:
        """The most memory that reading a batch and generating a few tokens needs, above what is held before.

        To be measured before anything else of its kind has run: memory kept from that would be reused unseen.
        """
        serving, ids = self.serving, self.serving.prompt(batch, length)
        serving.touch_weights()
        serving.read(serving.prompt(1, min(_WARM_TOKENS, length)))  # what is set up once is no prompt's
        _trim_heap()
        with PeakMemory(serving.device) as peak:
            at = serving.read(ids)
            for _ in range(min(_MEMORY_STEPS, self.most_steps) if at.cache is not None else 0):
                at = serving.step(at)
        return MemoryFigures(above_weights_bytes=peak.bytes, prompt_tokens=length, batch=batch, source=peak.source)

    def energy(self, length: int, batch: int) -> EnergyFigures:
        """Joules per token of decoding, of the whole machine while it does so; None where nothing measures them."""
        meter = EnergyMeter(processor=True)
        if not meter.can_measure:
            return EnergyFigures(joules_per_token=None, source=meter.stop().source)
        meter.start()
        times = self.serving.time_steps(batch, length, self.most_steps, self.effort)
        used = meter.stop()
        per_token = None if used.joules is None else used.joules / (batch * len(times))
        of = f"decoding {batch} texts at once after {length} tokens, with the reading of these"
        return EnergyFigures(joules_per_token=per_token, source=used.source, of=of)


def _trim_heap() -> None:
    """Trim the heap, so that peak memory is measured correctly."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


@torch.no_grad()
def counted_flops(model: Any, ids: torch.Tensor, **options: Any) -> int:
    """Matrix-multiplication FLOPs of one forward pass, counted as it runs.

    Args:
        model: A causal language model.
        ids: ``[batch, length]``.
        options: More arguments of the forward pass.
    """
    # The plain kernel: torch has no count of the fused one for processors.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids, use_cache=False, **options)
    return int(counter.get_total_flops())


def token_flops(model: Any, ids: torch.Tensor) -> tuple[float, str]:
    """FLOPs per token of a forward pass that gives the logits of every token, and how they are known.

    Args:
        model: A causal language model.
        ids: ``[1, length]``: the length that attention is counted at.
    """
    architecture = config_architecture(model.config)
    if architecture is not None:
        return float(flops_per_token(architecture, ids.shape[1])), SIZES
    return counted_flops(model, ids) / ids.shape[1], COUNTED


def reading_flops(model: Any, ids: torch.Tensor, *, last_only: bool) -> float:
    """FLOPs of reading a batch of prompts.

    Args:
        model: A causal language model.
        ids: ``[batch, length]``.
        last_only: Only the last token's logits are made.
    """
    architecture = config_architecture(model.config)
    batch, length = ids.shape
    if architecture is None:
        return batch * counted_flops(model, ids[:1], **({"logits_to_keep": 1} if last_only else {}))
    head = 2 * architecture.structure.vocab_size * architecture.hidden_size
    saved = (length - 1) * head if last_only else 0
    return float(batch * (length * flops_per_token(architecture, length) - saved))
