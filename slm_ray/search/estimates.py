"""What a search will cost, before any of it is spent.

FLOPs follow from sizes and are exact but for how many candidates the race stops early. Times are estimates, from a
short measurement of how fast this machine multiplies matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from slm_ray.models.precision import DTYPES, export_dtype, saved_bytes
from slm_ray.models.reconstruction import reconstruction_flops
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import Budget
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.runtime.forecast import Forecast, Work
from slm_ray.runtime.hardware import matmul_flops_per_second
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import LATENCY_PASSES
from slm_ray.search.inputs import check_fits, search_workers, tokens_to_write
from slm_ray.search.registry import PROXIES
from slm_ray.search.space import SearchSpace
from slm_ray.search.unit_scores import needed_methods

# Measured on default searches of SmolLM2-135M; only estimates depend on these.
RACED_SHARE = 0.4  # of all calibration tokens are read when beaten candidates stop at an early stage
FRONT_SIZE = 16  # models that end on the front, of which each is measured on held-out text
NUM_BASELINES = 3
SLOWDOWN = {"bf16": 4.0, "fp32": 1.5}  # a forward pass over its matrix multiplications alone
START_SECONDS = {
    "inputs": 3.0, "importance": 15.0, "search": 15.0, "held-out": 8.0, "reconstruction": 5.0, "winners": 5.0,
}  # fmt: skip
FINALIST_START_SECONDS = 15.0  # a training's processes, model and engine
_BACKWARD = 2  # a gate's gradient takes a forward and a backward pass for activations, of the same cost
_BATCH_SEQUENCES, _GATE_SEQUENCES = 4, 2
_PROCESS_BYTES = 600 * 1024**2  # Python with torch and transformers, what it shares with other processes not counted
_RAY_BYTES = 1200 * 1024**2  # Ray's own processes and the driver
_SIDE = 512


@dataclass(frozen=True)
class Sizes:
    """What of a search follows from its options and its teacher's sizes.

    Attributes:
        teacher: The teacher's sizes.
        budget: The hard range.
        reach: The least and the greatest cost the space can express, in the budget's quantity.
        num_genes: Choices that make up a candidate.
        candidate: The sizes of a candidate in the middle of the budget.
    """

    teacher: Architecture
    budget: Budget
    reach: tuple[int, int]
    num_genes: int
    candidate: Architecture


def search_sizes(config: SearchConfig, space: SearchSpace, teacher: Architecture) -> Sizes:
    """The sizes of a search.

    Raises:
        UserError: The sequence is too long for the teacher, or the space cannot meet the budget.
    """
    budget, genome = check_fits(config, space, teacher)
    reach = genome.reach(budget.quantity, config.length)
    middle = (max(budget.low, reach[0]) + min(budget.high, reach[1])) // 2
    candidate = genome.architecture(genome.ranked(middle, budget, config.length))
    return Sizes(teacher, budget, reach, genome.num_genes, candidate)


def forecast_search(
    config: SearchConfig, space: SearchSpace, sizes: Sizes, precision: str, own_dtype: str
) -> Forecast:
    """What a search will cost.

    Args:
        config: The options.
        space: The search space.
        sizes: Its sizes.
        precision: ``fp32`` or ``bf16``: what is computed in.
        own_dtype: The type that the teacher's own weights are saved in.
    """
    length, teacher, candidate, measure = config.length, sizes.teacher, sizes.candidate, config.measure
    whole, part = float(flops_per_token(teacher, length)), float(flops_per_token(candidate, length))
    work = partial(Work, kind="search", slowdown=SLOWDOWN[precision])
    written = tokens_to_write(config)
    learned = config.scores.tokens if "taylor" in needed_methods(config, set(space.orders())) else 0
    front = min(FRONT_SIZE, config.plan.trials)
    winners = min(config.winners.winners, config.plan.trials)
    other = measure.other_tokens if measure.other_data else 0
    final_flops = measure.held_out_tokens * ((front + NUM_BASELINES) * part + whole) + other * (winners * part + whole)
    parts = [
        work(name="teacher and text", tokens=written, flops=written * whole, start_seconds=START_SECONDS["inputs"]),
        work(
            name="unit importance", tokens=learned, flops=learned * whole * _BACKWARD,
            start_seconds=START_SECONDS["importance"] if learned else 0,
        ),
        work(
            name="search", tokens=_search_tokens(config), most_tokens=_search_tokens(config, raced=False),
            flops=_search_tokens(config) * (part + _kl_flops(config, teacher)), start_seconds=START_SECONDS["search"],
        ),
        *([_finalists(config, whole, part)] if config.winners.finalists else []),
        work(
            name="held-out text", tokens=measure.held_out_tokens * (front + NUM_BASELINES + 1) + other * (winners + 1),
            most_tokens=measure.held_out_tokens * (config.plan.trials + NUM_BASELINES + 1) + other * (winners + 1),
            flops=final_flops, start_seconds=START_SECONDS["held-out"],
        ),
        *([_reconstruction(config, sizes, precision)] if config.reconstruction.reconstruct != "none" else []),
        work(name="winners and report", start_seconds=START_SECONDS["winners"]),
    ]  # fmt: skip
    saved = saved_bytes(num_params(candidate), export_dtype(config.winners.dtype, own_dtype))
    workers = search_workers(config)
    return Forecast(
        work=tuple(parts), memory_bytes=memory_bytes(config, teacher, precision, workers),
        disk_bytes=config.winners.winners * saved, workers=workers,
    )  # fmt: skip


def _kl_flops(config: SearchConfig, teacher: Architecture) -> float:
    """Of one token: the teacher's logits are made anew beside the candidate's."""
    return 2.0 * teacher.structure.vocab_size * teacher.hidden_size if "kl" in config.plan.needed_proxies else 0.0


def _finalists(config: SearchConfig, whole: float, part: float) -> Work:
    """Short training: three passes of the student and one of the teacher, and the loss before and after."""
    count = config.winners.finalists
    trained, measured = config.winners.finalist_tokens * count, 2 * config.measure.calibration_tokens * count
    return Work(
        name="finalists", kind="search", tokens=trained + measured, slowdown=SLOWDOWN["fp32"],
        flops=trained * (3 * part + whole) + measured * part, start_seconds=count * FINALIST_START_SECONDS,
    )  # fmt: skip


def _reconstruction(config: SearchConfig, sizes: Sizes, precision: str) -> Work:
    """Fits, the calibration text after, and before where the search does not measure it, the held-out text after."""
    measure, wanted, trials = config.measure, config.reconstruction, config.plan.trials
    of_winners = wanted.reconstruct == "winners"
    usual = min(config.winners.winners if of_winners else FRONT_SIZE, trials)
    most = min(config.winners.winners, trials) if of_winners else trials
    times = 1 + ("perplexity" not in config.plan.needed_proxies)
    measured = times * measure.calibration_tokens + measure.held_out_tokens
    measured += measure.other_tokens if measure.other_data else 0
    flops = reconstruction_flops(sizes.teacher, [sizes.candidate] * usual, wanted.reconstruct_tokens, config.length)
    flops += float(usual * measured) * flops_per_token(sizes.candidate, config.length)
    tokens, at_most = (
        (1 + count) * wanted.reconstruct_tokens + count * measured for count in (usual, max(usual, most))
    )
    return Work(
        name="reconstruction", kind="search", tokens=tokens, most_tokens=at_most, flops=flops,
        start_seconds=START_SECONDS["reconstruction"], slowdown=SLOWDOWN[precision],
    )  # fmt: skip


def _search_tokens(config: SearchConfig, *, raced: bool = True) -> int:
    """Tokens of all candidates together; with ``raced``, as many as the early stages are expected to leave."""
    proxies, measure = config.plan.needed_proxies, config.measure
    staged = sum(PROXIES[name].staged for name in proxies) * measure.calibration_tokens
    if raced and measure.stage_tokens:
        staged = round(staged * max(RACED_SHARE, min(1.0, measure.stage_tokens[0] / measure.calibration_tokens)))
    return config.plan.trials * (staged + (LATENCY_PASSES * config.length if "latency" in proxies else 0))


def memory_bytes(config: SearchConfig, teacher: Architecture, precision: str, workers: int) -> int:
    """Memory of a search on one machine; the teacher counts once, for all workers map the same file.

    A worker's own memory peaks in the phase that takes gradients.
    """
    value_bytes, structure, layer = (2 if precision == "bf16" else 4), teacher.structure, teacher.layers[0]
    attention = structure.head_dim * (2 * layer.num_attention_heads + 2 * layer.num_key_value_heads)
    per_layer = 6 * teacher.hidden_size + attention + 5 * layer.intermediate_size
    sequences = max(_BATCH_SEQUENCES, _GATE_SEQUENCES * teacher.num_hidden_layers)
    worker = _PROCESS_BYTES + config.length * sequences * per_layer * value_bytes
    return _RAY_BYTES + num_params(teacher) * value_bytes + max(1, workers) * worker


def cache_bytes(teacher: Architecture, weight_bytes: int, precision: str) -> int:
    """Disk of the teacher in the cache: as it is, and once more in the type that is computed in, where that differs."""
    value_bytes = 2 if precision == "bf16" else 4
    return num_params(teacher) * (weight_bytes + (value_bytes if value_bytes != weight_bytes else 0))


def multiplication_rate(precision: str, threads: int) -> float:
    """FLOPs per second of this machine at a matrix multiplication; takes half a second.

    Args:
        precision: ``fp32`` or ``bf16``.
        threads: Threads to use.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return matmul_flops_per_second(torch.device("cpu"), DTYPES[precision], _SIDE)
    finally:
        torch.set_num_threads(before)
