"""What a search will cost, before any of it is spent.

FLOPs follow from sizes and are exact but for how many candidates the race stops early. Times are estimates, from a
short measurement of how fast this machine multiplies matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from slm_ray.config.base import flatten
from slm_ray.config.errors import UserError
from slm_ray.config.units import format_seconds
from slm_ray.models.precision import DTYPES, export_dtype, measure_precision, saved_bytes
from slm_ray.models.reconstruction import reconstruction_flops
from slm_ray.models.teacher_sizes import look_up_teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import Budget
from slm_ray.records.cost import flops_per_token, num_params
from slm_ray.runtime.forecast import SLOWDOWN, Forecast, Work
from slm_ray.runtime.hardware import device_of, matmul_flops_per_second
from slm_ray.runtime.session import default_workers
from slm_ray.search.config import EFFORTS, SearchConfig
from slm_ray.search.evaluator import LATENCY_PASSES
from slm_ray.search.inputs import check_fits, search_workers, sizes_to_try, space_of, tokens_to_write
from slm_ray.search.registry import PROXIES
from slm_ray.search.space import SearchSpace
from slm_ray.search.unit_scores import needed_methods

# Measured on default searches of SmolLM2-135M; only estimates depend on these.
RACED_SHARE = 0.4  # of all calibration tokens are read when beaten candidates stop at an early stage
FRONT_SIZE = 16  # models that end on the front, of which each is measured on held-out text
NUM_HOPELESS = 2  # baselines that are so bad that a glance tells
GLANCE_TOKENS = 512
SCORES_SLOWDOWN = {"bf16": 2.0, "fp16": 2.0, "fp32": 1.4}  # gate gradients over their matrix multiplications alone
START_SECONDS = {
    "inputs": 10.0, "scores": 3.0, "search": 15.0, "held-out": 3.0, "reconstruction": 5.0, "winner": 1.0, "report": 3.0,
}  # fmt: skip
FINALIST_START_SECONDS = 15.0  # a training's processes, model and engine
_BACKWARD = 2  # a gate's gradient takes a forward and a backward pass for activations, of the same cost
_BATCH_SEQUENCES, _GATE_SEQUENCES = 4, 2
_PROCESS_BYTES = 600 * 1024**2  # Python with torch and transformers, what it shares with other processes not counted
_RAY_BYTES = 1200 * 1024**2  # Ray's own processes and the driver
_SIDE = 512
_STEPS = 61  # between the least and the greatest plan


@dataclass(frozen=True)
class Sizes:
    """What of a search follows from its options and its teacher's sizes."""

    teacher: Architecture  # The teacher's sizes
    budget: Budget  # The hard range
    reach: tuple[int, int]  # The least and the greatest cost the space can express, in the budget's quantity
    num_genes: int  # Choices that make up a candidate
    candidate: Architecture  # The sizes of a candidate in the middle of the budget


def search_sizes(config: SearchConfig, space: SearchSpace, teacher: Architecture) -> Sizes:
    """The sizes of a search."""
    budget, genomes = check_fits(config, space, teacher)
    least, most = zip(*(genome.reach(budget.quantity, config.length) for genome in genomes), strict=True)
    reach, genome = (min(least), max(most)), genomes[0]
    middle = (max(budget.low, reach[0]) + min(budget.high, reach[1])) // 2
    candidate = genome.architecture(genome.ranked(middle, budget, config.length))
    return Sizes(teacher, budget, reach, genome.num_genes, candidate)


def forecast_search(config: SearchConfig, space: SearchSpace, sizes: Sizes, precision: str, own_dtype: str) -> Forecast:
    """What a search will cost."""
    length, teacher, candidate, measure = config.length, sizes.teacher, sizes.candidate, config.measure
    whole, part = float(flops_per_token(teacher, length)), float(flops_per_token(candidate, length))
    work = partial(Work, kind="search", slowdown=SLOWDOWN[precision])
    learned = config.scores.tokens if "taylor" in needed_methods(config, set(space.orders())) else 0
    front = min(FRONT_SIZE, config.plan.trials)
    winners = min(config.winners.winners, config.plan.trials)
    other = measure.other_tokens if measure.other_data else 0
    glances, beside = NUM_HOPELESS * GLANCE_TOKENS, 1  # of two baselines a little is enough; the third is measured
    final_flops = measure.held_out_tokens * ((front + beside) * part + whole) + glances * part
    final_flops += other * (winners * part + whole)
    fits = config.reconstruction.reconstruct != "none"
    written = float(tokens_to_write(config)) * whole  # before the search where it is measured on it
    early = written if len(sizes_to_try(config, space, teacher)) > 1 and config.space.general else 0.0
    parts = [
        work(name="teacher and text", start_seconds=START_SECONDS["inputs"]),
        work(
            name="unit scores", tokens=learned, flops=learned * whole * _BACKWARD, slowdown=SCORES_SLOWDOWN[precision],
            start_seconds=START_SECONDS["scores"] if learned else 0,
        ),
        work(
            name="search", tokens=_search_tokens(config), most_tokens=_search_tokens(config, raced=False),
            flops=_search_tokens(config) * (part + _kl_flops(config, teacher)) + early,
            start_seconds=START_SECONDS["search"],
        ),
        *([_finalists(config, whole, part)] if config.winners.finalists else []),
        work(name="winners", start_seconds=winners * START_SECONDS["winner"]),
        *([_reconstruction(config, sizes, precision, written - early)] if fits else []),
        work(
            name="held-out text",
            tokens=measure.held_out_tokens * (front + beside + 1) + glances + other * (winners + 1),
            most_tokens=measure.held_out_tokens * (config.plan.trials + beside + NUM_HOPELESS + 1)
            + other * (winners + 1),
            flops=final_flops, start_seconds=START_SECONDS["held-out"],
        ),
        work(name="report", start_seconds=START_SECONDS["report"]),
    ]  # fmt: skip
    saved = saved_bytes(num_params(candidate), export_dtype(config.winners.dtype, own_dtype))
    workers = search_workers(config)
    return Forecast(
        work=tuple(parts), memory_bytes=memory_bytes(config, teacher, precision, workers),
        disk_bytes=config.winners.winners * saved, workers=workers,
    )  # fmt: skip


def phases_of(config: SearchConfig) -> list[str]:
    """The names of a search's phases, in order; a forecast's parts have the same."""
    return [
        "teacher and text", "unit scores", "search", *(["finalists"] if config.winners.finalists else []), "winners",
        *(["reconstruction"] if config.reconstruction.reconstruct != "none" else []), "held-out text", "report",
    ]  # fmt: skip


def machine_rate(config: SearchConfig, precision: str) -> float:
    """FLOPs per second of all of a search's threads on this machine at multiplying matrices; takes half a second."""
    machine, at_once = config.machine, max(1, search_workers(config))
    if not machine.address:
        at_once = min(at_once, default_workers(machine.threads))
    return multiplication_rate(precision, machine.threads) * at_once


def fit_to_minutes(config: SearchConfig, minutes: float) -> SearchConfig:
    """The largest plan that this machine has done in some minutes, as far as can be foreseen.

    What ``--effort`` sets lies between its least and its greatest value, all at the same share of the way in
    logarithms; an option that has another value than its effort's was given by the user, and stays.
    """
    known, space, given = look_up_teacher(config.space.teacher), space_of(config), flatten(config)
    if known.architecture is None:
        raise UserError(f"--minutes needs the sizes of teacher {known.name}, and {known.note}: give --effort instead")
    precision = measure_precision(config.measure.precision, device_of(config.machine.device, config.machine.address))
    rate, own = machine_rate(config, precision), EFFORTS[config.effort.effort]
    free = {
        name: (low, EFFORTS["thorough"][name]) for name, low in EFFORTS["quick"].items() if given[name] == own[name]
    }
    for share in np.linspace(1, 0, _STEPS):
        values = {name: round(low * (high / low) ** share) for name, (low, high) in free.items()}
        plan = config.replace(**values)
        sizes = search_sizes(plan, space, known.architecture)
        needed = forecast_search(plan, space, sizes, precision, known.dtype).seconds(rate)
        if needed <= 60 * minutes:
            return plan
    raise UserError(
        f"--minutes {minutes:g} is less than the least plan takes on this machine, about {format_seconds(needed)}: "
        f"give --minutes {math.ceil(needed / 60)} or more"
    )


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


def _reconstruction(config: SearchConfig, sizes: Sizes, precision: str, writing: float) -> Work:
    """Fits, the calibration text after, and before where the search does not measure it, the held-out text after."""
    measure, wanted, trials = config.measure, config.reconstruction, config.plan.trials
    of_winners = wanted.reconstruct == "winners"
    usual = min(config.winners.winners if of_winners else FRONT_SIZE, trials)
    most = min(config.winners.winners, trials) if of_winners else trials
    times = 1 + ("perplexity" not in config.plan.needed_proxies)
    measured = times * measure.calibration_tokens + measure.held_out_tokens
    measured += measure.other_tokens if measure.other_data else 0
    written = tokens_to_write(config)
    fitted = [sizes.candidate] * usual
    flops = writing + reconstruction_flops(sizes.teacher, fitted, wanted.reconstruct_tokens, config.length)
    flops += float(usual * measured) * flops_per_token(sizes.candidate, config.length)
    tokens, at_most = (
        written + (1 + count) * wanted.reconstruct_tokens + count * measured for count in (usual, max(usual, most))
    )
    return Work(
        name="reconstruction", kind="search", tokens=tokens, most_tokens=at_most, flops=flops,
        start_seconds=START_SECONDS["reconstruction"], slowdown=SLOWDOWN[precision],
    )  # fmt: skip


def _search_tokens(config: SearchConfig, *, raced: bool = True) -> int:
    """Tokens of all candidates together; with ``raced``, as many as the early stages are expected to leave."""
    proxies, measure = config.plan.needed_proxies, config.measure
    whole = sum(PROXIES[name].staged for name in proxies) * measure.calibration_tokens
    first, trials = max(1, config.plan.population // 3), config.plan.trials  # the first have nobody to race against
    share = 1.0
    if raced and measure.stage_tokens:
        share = max(RACED_SHARE, min(1.0, measure.stage_tokens[0] / measure.calibration_tokens))
    staged = whole * (min(first, trials) + share * max(0, trials - first))
    return round(staged) + trials * (LATENCY_PASSES * config.length if "latency" in proxies else 0)


def memory_bytes(config: SearchConfig, teacher: Architecture, precision: str, workers: int) -> int:
    """Memory of a search on one machine; the teacher counts once, for all workers map the same file.

    A worker's own memory peaks in the phase that takes gradients.
    """
    value_bytes, structure, layer = (4 if precision == "fp32" else 2), teacher.structure, teacher.layers[0]
    attention = structure.head_dim * (2 * layer.num_attention_heads + 2 * layer.num_key_value_heads)
    per_layer = 6 * teacher.hidden_size + attention + 5 * layer.intermediate_size
    sequences = max(_BATCH_SEQUENCES, _GATE_SEQUENCES * teacher.num_hidden_layers)
    worker = _PROCESS_BYTES + config.length * sequences * per_layer * value_bytes
    return _RAY_BYTES + num_params(teacher) * value_bytes + max(1, workers) * worker


def cache_bytes(teacher: Architecture, weight_bytes: int, precision: str) -> int:
    """Disk of the teacher in the cache: as it is, and once more in the type that is computed in, where that differs."""
    value_bytes = 4 if precision == "fp32" else 2
    return num_params(teacher) * (weight_bytes + (value_bytes if value_bytes != weight_bytes else 0))


def multiplication_rate(precision: str, threads: int) -> float:
    """FLOPs per second of this machine at a matrix multiplication; takes half a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return matmul_flops_per_second(torch.device("cpu"), DTYPES[precision], _SIDE)
    finally:
        torch.set_num_threads(before)
