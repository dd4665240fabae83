"""What a model costs to run: rates, latencies, memory, cache, FLOPs, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from slm_ray.evaluate.bench import Bench
from slm_ray.evaluate.forward_flops import token_flops
from slm_ray.evaluate.models import LoadedModel
from slm_ray.evaluate.serving import Serving, cache_bytes
from slm_ray.evaluate.ticker import Ticker
from slm_ray.models.families import config_architecture, context_length
from slm_ray.records.cost import kv_bytes_per_token
from slm_ray.runtime.environment import describe_environment
from slm_ray.runtime.hardware import Effort, Neighbours, matmul_flops_per_second, peak_flops

Say = Callable[[str], None]
# Tokens of prompts, and prompts at once: every length with the smallest batch, every batch with the shortest length.
_LENGTHS = {"cpu": (128, 512), "cuda": (128, 512, 2048)}
_BATCHES = {"cpu": (1, 4), "cuda": (1, 8, 32)}
_MOST_STEPS = 64  # a context that is decoded after grows by at most this
_FLOPS_LENGTH = 512  # FLOPs per token are told for a sequence of this length
_BUSY = 0.1  # above this share of the processors, the work of others is worth a note
_EFFORT = ("least_runs", "least_seconds", "most_seconds")


def shapes_that_fit(
    context: int | None, lengths: Sequence[int], batches: Sequence[int], steps: int
) -> list[tuple[int, int]]:
    """Lengths and batches to measure.

    Args:
        context: The model's positions; None where they have no end.
        lengths: Tokens of prompts that are wanted.
        batches: Prompts at once.
        steps: Tokens that have to fit after a prompt.

    Returns:
        Pairs of a length and a batch; half the context where no wanted length fits.
    """
    fitting = [length for length in sorted(lengths) if not context or length + steps <= context]
    fitting = fitting or [max(1, (context or 2) // 2)]
    pairs = [(length, min(batches)) for length in fitting] + [(fitting[0], batch) for batch in sorted(batches)]
    return list(dict.fromkeys(pairs))


def measure_efficiency(loaded: LoadedModel, settings: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Measure what a model costs to run, with transformers' own forward pass and cache and no tokenizer.

    Args:
        loaded: The model; in bf16, a copy of it with bf16 weights is measured.
        settings: Optional: ``prompt_tokens`` and ``batches`` (lists), ``least_runs``, ``least_seconds`` and
            ``most_seconds`` of each figure (see :class:`Effort`).
        say: Takes lines of progress.

    Returns:
        The record: bytes, FLOPs, rates per second at the median latency, latencies in milliseconds. Memory is that of
        the largest shape, weights and all.
    """
    serving, neighbours = Serving(loaded), Neighbours()
    kind, context = serving.device.type, context_length(serving.model.config)
    steps = min(_MOST_STEPS, max(1, (context or 4 * _MOST_STEPS) // 4))
    lengths, batches = settings.get("prompt_tokens", _LENGTHS[kind]), settings.get("batches", _BATCHES[kind])
    shapes = shapes_that_fit(context, lengths, batches, steps)
    effort = Effort(**{name: settings[name] for name in _EFFORT if name in settings})
    bench, notes = Bench(serving=serving, most_steps=steps, effort=effort), list[str]()
    ticker = Ticker(say, "efficiency", 2 * len(shapes) + 1, "measurements")

    def rows(measure: Callable[[int, int], dict[str, Any]], wanted: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        found = []
        for shape in wanted:
            found.append(_if_it_fits(measure, shape, notes))
            ticker.advance(1)
        return [row for row in found if row]

    memory = rows(bench.memory, [max(shapes, key=lambda shape: shape[0] * shape[1])])  # first: see there
    record = _sizes(serving, shapes[0][0], notes)
    record["peak_memory_bytes"] = serving.weight_bytes + memory[0]["above_weights_bytes"] if memory else None
    record["memory"] = memory[0] if memory else None
    matmul = matmul_flops_per_second(serving.device, serving.dtype)
    record["prefill"] = rows(bench.prefill, shapes)
    record["decode"] = rows(bench.decode, shapes) if record["kv_bytes_per_token"] else []
    record["energy"] = bench.energy(*shapes[0]) if record["decode"] else _NO_ENERGY
    matmul = max(matmul, matmul_flops_per_second(serving.device, serving.dtype))  # the faster, of before and after
    record["others_cpu_share"] = neighbours.share()
    if record["others_cpu_share"] > _BUSY:
        busy = f"{100 * record['others_cpu_share']:.0f}%"
        notes.append(f"other processes used {busy} of the processors meanwhile: rates are lower than they could be")
    return record | _machine(serving, record["prefill"], matmul) | {"notes": notes}


_NO_ENERGY = {"joules_per_token": None, "source": "unknown: nothing was decoded"}


def _if_it_fits(
    measure: Callable[[int, int], dict[str, Any]], shape: tuple[int, int], notes: list[str]
) -> dict[str, Any] | None:
    """A figure of a length and a batch; None, and a note, where it does not fit the GPU's memory."""
    try:
        return measure(*shape)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        notes.append(f"{shape[1]} texts of {shape[0]} tokens at once do not fit the GPU's memory: left out")
        return None


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


def _machine(serving: Serving, prefill: Sequence[dict[str, Any]], matmul: float) -> dict[str, Any]:
    """What it ran on, what that machine can do, and the share of it that each prefill reached."""
    for row in prefill:
        row["mfu"] = row["flops_per_second"] / matmul
    precision, device = "bf16" if serving.dtype == torch.bfloat16 else "fp32", serving.device
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else describe_environment()["cpu"]
    return {
        "matmul_flops_per_second": matmul, "peak_flops_per_second": peak_flops(name, precision) if cuda else None,
        "mfu_prefill": max((row["mfu"] for row in prefill), default=None), "threads": torch.get_num_threads(),
        "device": device.type, "device_name": name, "precision": precision,
    }  # fmt: skip
