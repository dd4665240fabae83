"""What a search will cost, before any of it is spent: tokens, FLOPs, time, memory and disk.

FLOPs follow from sizes and are exact but for how many candidates the race stops early. Times are estimates, from a
short measurement of how fast this machine multiplies matrices.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from slm_ray.config.units import parse_number
from slm_ray.models.reconstruction import reconstruction_flops
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.search.config import SearchConfig
from slm_ray.search.fidelity import num_in_fp32
from slm_ray.search.inputs import tokens_to_write
from slm_ray.search.registry import PROXIES
from slm_ray.search.space import SearchSpace

# Measured on default searches of SmolLM2-135M; only estimates depend on these.
RACED_SHARE = 0.4  # of all calibration tokens are read when beaten candidates stop at an early stage
FRONT_SIZE = 16  # models that end on the front, of which each is measured on held-out text
NUM_BASELINES = 3
SLOWDOWN = {"bf16": 4.0, "fp32": 1.5}  # a forward pass over its matrix multiplications alone
START_SECONDS = {
    "inputs": 3.0,
    "importance": 15.0,
    "search": 15.0,
    "held-out": 5.0,
    "audit": 3.0,
    "reconstruction": 5.0,
    "winners": 5.0,
}
FINALIST_START_SECONDS = 15.0  # a training's processes, model and engine
_BACKWARD = 2  # a gate's gradient takes a forward and a backward pass for activations, of the same cost
_LATENCY_PASSES = 6
_BATCH_SEQUENCES, _GATE_SEQUENCES = 4, 2
_PROCESS_BYTES = 600 * 1024**2  # Python with torch and transformers, what it shares with other processes not counted
_RAY_BYTES = 1200 * 1024**2  # Ray's own processes and the driver
_RATE_SECONDS = 0.3


@dataclass(frozen=True)
class PhaseEstimate:
    """What one phase computes.

    Attributes:
        name: The phase.
        tokens: Tokens expected to go through a model.
        most_tokens: The most there can be.
        flops: FLOPs of the expected tokens.
        start_seconds: What it takes to start, whatever there is to compute.
    """

    name: str
    tokens: int
    most_tokens: int
    flops: float
    start_seconds: float

    def seconds(self, rate: float, slowdown: float) -> float:
        """Expected time at a machine's rate of multiplication, in FLOPs per second over all workers."""
        return self.start_seconds + self.flops * slowdown / rate


def needs_taylor(config: SearchConfig, space: SearchSpace) -> bool:
    """Whether Taylor scores have to be learned."""
    return "taylor" in space.orders() or any(PROXIES[name].scores == "taylor" for name in config.needed_proxies())


def estimate_phases(
    config: SearchConfig, space: SearchSpace, teacher: Architecture, candidate: Architecture
) -> list[PhaseEstimate]:
    """The phases of a search.

    Args:
        config: The options.
        space: The search space, its order replaced where the options say so.
        teacher: The teacher's sizes.
        candidate: The sizes of a candidate in the middle of the budget.
    """
    length = config.sequence_length
    whole, part = flops_per_token(teacher, length), flops_per_token(candidate, length)
    importance = config.importance_steps * config.importance_tokens if needs_taylor(config, space) else 0
    tokens, most, per_token = _search_tokens(config), _search_tokens(config, raced=False), part
    if "kl" in config.needed_proxies():  # the teacher's logits are made anew beside the candidate's
        per_token += 2 * teacher.structure.vocab_size * teacher.hidden_size
    front = min(FRONT_SIZE, config.trials)
    final = config.held_out_tokens * (front + NUM_BASELINES + 1)
    final_flops = float(config.held_out_tokens) * ((front + NUM_BASELINES) * part + whole)
    if config.other_data:
        winners = min(config.winners, config.trials)
        final += config.other_tokens * (winners + 1)
        final_flops += float(config.other_tokens) * (winners * part + whole)
    start = START_SECONDS
    return [
        _inputs(config, teacher),
        PhaseEstimate(
            "unit importance", importance, importance, float(importance) * whole * _BACKWARD,
            start["importance"] if importance else 0,
        ),
        PhaseEstimate("search", tokens, most, float(tokens) * per_token, start["search"]),
        *([_finalists(config, float(whole), float(part))] if config.finalists else []),
        PhaseEstimate("held-out text", final, max(final, _most_final(config)), final_flops, start["held-out"]),
        *([_audit(config, float(part))] if config.audit else []),
        *([_reconstruction(config, teacher, candidate)] if config.reconstruct != "none" else []),
        PhaseEstimate("winners and report", 0, 0, 0, start["winners"]),
    ]  # fmt: skip


def _inputs(config: SearchConfig, teacher: Architecture) -> PhaseEstimate:
    """The teacher's own text, where it is to write any: one pass, token by token."""
    tokens = tokens_to_write(config)
    flops = float(tokens) * flops_per_token(teacher, config.sequence_length)
    return PhaseEstimate("teacher and text", tokens, tokens, flops, START_SECONDS["inputs"])


def _finalists(config: SearchConfig, whole: float, part: float) -> PhaseEstimate:
    """Short training: three passes of the student and one of the teacher, and the loss before and after."""
    trained = round(parse_number(config.finalist_tokens)) * config.finalists
    measured = 2 * config.calibration_tokens * config.finalists
    flops = trained * (3 * part + whole) + measured * part
    start = config.finalists * FINALIST_START_SECONDS
    return PhaseEstimate("finalists", trained + measured, trained + measured, flops, start)


def _audit(config: SearchConfig, part: float) -> PhaseEstimate:
    """Candidates measured to the end, and where the search does not run in fp32, as many in that on some text."""
    sequences = max(1, config.calibration_tokens // config.sequence_length)
    staged = any(PROXIES[name].staged for name in config.needed_proxies())
    read = sequences if not staged or config.stage_tokens() else 0
    if staged and config.precision != "fp32":
        read += num_in_fp32(sequences)
    tokens = min(config.audit, config.trials) * read * config.sequence_length
    return PhaseEstimate("audit of shortcuts", tokens, tokens, tokens * part, START_SECONDS["audit"] if tokens else 0)


def _reconstruction(config: SearchConfig, teacher: Architecture, candidate: Architecture) -> PhaseEstimate:
    """Fits, the calibration text after, and before where the search does not measure it, the held-out text after."""
    length = config.sequence_length
    usual = min(config.winners if config.reconstruct == "winners" else FRONT_SIZE, config.trials)
    most = min(config.winners, config.trials) if config.reconstruct == "winners" else config.trials
    measured = (1 + ("perplexity" not in config.needed_proxies())) * config.calibration_tokens + config.held_out_tokens
    measured += config.other_tokens if config.other_data else 0
    flops = reconstruction_flops(teacher, [candidate] * usual, config.reconstruct_tokens, length)
    flops += float(usual * measured) * flops_per_token(candidate, length)
    tokens, at_most = (
        (1 + count) * config.reconstruct_tokens + count * measured for count in (usual, max(usual, most))
    )
    return PhaseEstimate("reconstruction", tokens, at_most, flops, START_SECONDS["reconstruction"])


def _search_tokens(config: SearchConfig, *, raced: bool = True) -> int:
    """Tokens of all candidates together; with ``raced``, as many as the early stages are expected to leave."""
    proxies = config.needed_proxies()
    staged = sum(PROXIES[name].staged for name in proxies) * config.calibration_tokens
    if raced and config.stage_tokens():
        staged = round(staged * max(RACED_SHARE, min(1.0, config.stage_tokens()[0] / config.calibration_tokens)))
    latency = _LATENCY_PASSES * config.sequence_length if "latency" in proxies else 0
    return config.trials * (staged + latency)


def _most_final(config: SearchConfig) -> int:
    """Every candidate could be on the front."""
    return config.held_out_tokens * (config.trials + NUM_BASELINES + 1)


def worker_bytes(config: SearchConfig, teacher: Architecture, value_bytes: int) -> int:
    """Memory of one worker that it shares with nobody, at its peak: in the phase that takes gradients."""
    structure, layer = teacher.structure, teacher.layers[0]
    attention = structure.head_dim * (2 * layer.num_attention_heads + 2 * layer.num_key_value_heads)
    per_layer = 6 * teacher.hidden_size + attention + 5 * layer.intermediate_size
    forward = _BATCH_SEQUENCES * per_layer
    gates = _GATE_SEQUENCES * per_layer * teacher.num_hidden_layers
    return _PROCESS_BYTES + config.sequence_length * max(forward, gates) * value_bytes


def memory_bytes(config: SearchConfig, teacher: Architecture, precision: str, workers: int) -> int:
    """Memory of a search on one machine; the teacher counts once, for all workers map the same file."""
    value_bytes = 2 if precision == "bf16" else 4
    return _RAY_BYTES + num_params(teacher) * value_bytes + workers * worker_bytes(config, teacher, value_bytes)


def cache_bytes(teacher: Architecture, weight_bytes: int, precision: str) -> int:
    """Disk of the teacher in the cache: as it is, and once more in the type that is computed in, where that differs."""
    value_bytes = 2 if precision == "bf16" else 4
    return num_params(teacher) * (weight_bytes + (value_bytes if value_bytes != weight_bytes else 0))


def multiplication_rate(teacher: Architecture, precision: str, threads: int) -> float:
    """FLOPs per second of this machine at a matrix multiplication of the teacher's sizes; takes half a second.

    Args:
        teacher: The teacher's sizes.
        precision: ``fp32`` or ``bf16``.
        threads: Threads to use.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    inputs = torch.randn(512, teacher.hidden_size).to(dtype)
    weights = torch.randn(max(64, teacher.layers[0].intermediate_size), teacher.hidden_size).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(3):
            torch.nn.functional.linear(inputs, weights)
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < _RATE_SECONDS or not count:
            torch.nn.functional.linear(inputs, weights)
            count += 1
    finally:
        torch.set_num_threads(before)
    return 2 * inputs.numel() * len(weights) * count / passed
