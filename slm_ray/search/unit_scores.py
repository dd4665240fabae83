"""Unit scores for a search: which are needed, how they are made, and the genomes bound to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from slm_ray.config.errors import UserError
from slm_ray.models.gates import GatedTeacher, GateGradients, Masks
from slm_ray.models.importance import activation_scores, magnitude_scores
from slm_ray.models.precision import DTYPES
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.scores import UnitScores, cached_scores
from slm_ray.models.teachers import Teacher
from slm_ray.records.architecture import Architecture
from slm_ray.records.budget import measure_cost
from slm_ray.records.files import cache_folder
from slm_ray.runtime.fan_out import FanOut
from slm_ray.runtime.progress import Progress
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import share_of
from slm_ray.search.genome import Genome
from slm_ray.search.inputs import SearchInputs, with_rows
from slm_ray.search.learned_scores import LearnedScores, blend, learn_scores, target_costs
from slm_ray.search.registry import PROXIES
from slm_ray.search.space import NATURAL
from slm_ray.search.stack import GenomeStack

ACTIVATION_SEQUENCES = 16
# Sequences go through the model one by one whatever the number of workers, so that the result does not depend on it.
_BATCH_SEQUENCES = 1
_METHOD_VERSION = 2
_BETWEEN = (0.75, 0.5, 0.25)  # shares of the larger end's scores


@dataclass(frozen=True)
class Ranking:
    """All scores of a run.

    Attributes:
        learned: Taylor scores per target size; empty where the space needs none.
        one_shot: Taylor scores of the whole teacher, or None.
        others: Magnitude and activation scores, where needed.
        tokens: Tokens run through the teacher forwards and backwards in this run (0 where the cache had the scores).
    """

    learned: tuple[UnitScores, ...]
    one_shot: UnitScores | None
    others: dict[str, UnitScores]
    tokens: int

    def by_method(self) -> dict[str, UnitScores]:
        """For the proxies that are sums of scores."""
        return self.others | ({"taylor": self.one_shot} if self.one_shot is not None else {})


def needed_methods(config: SearchConfig, orders: set[str]) -> set[str]:
    """The score methods that the space's orders and the proxies need."""
    return {order for order in orders if order != NATURAL} | {
        PROXIES[name].scores or "" for name in config.plan.needed_proxies
    } - {""}


def rank_units(
    config: SearchConfig, inputs: SearchInputs, progress: Progress, workers: int, methods: set[str] | None = None
) -> Ranking:
    """Make unit scores, or read them from the cache.

    Args:
        config: The options.
        inputs: What the search starts from.
        progress: Told how many steps are done.
        workers: Processes that take gate gradients; 0: this one.
        methods: Which scores; those that the search needs by default.

    Raises:
        UserError: The teacher's loss is not a number.
    """
    methods = needed_methods(config, set(inputs.space.orders())) if methods is None else methods
    others = {}
    for method in sorted(methods - {"taylor"}):
        found, _ = cached_scores(cache_folder(), _key(inputs, method), partial(_simple_scores, inputs, method))
        others[method] = found[0]
    if "taylor" not in methods:
        return Ranking((), None, others, 0)
    key = _key(inputs, "taylor") | {
        "steps": config.scores.importance_steps, "step_tokens": config.scores.importance_tokens,
        "space": inputs.space.digest, "targets": _targets(config, inputs), "rows": _scored(inputs).structure.vocab_size,
        "version": _METHOD_VERSION,
    }  # fmt: skip

    def compute() -> list[UnitScores]:
        learned = _learn(config, inputs, progress, workers)
        return [learned.one_shot, *learned.by_target]

    found, was_cached = cached_scores(cache_folder(), key, compute)
    return Ranking(tuple(found[1:]), found[0], others, 0 if was_cached else config.scores.tokens)


def _key(inputs: SearchInputs, method: str) -> dict[str, Any]:
    tokens = None if method == "magnitude" else inputs.train.digest
    return {"method": method, "teacher": inputs.teacher.digest, "tokens": tokens, "precision": inputs.precision}


def _simple_scores(inputs: SearchInputs, method: str) -> list[UnitScores]:
    config, family = inputs.teacher.config(), inputs.teacher.family()
    if method == "magnitude":
        return [magnitude_scores(inputs.teacher.state(), family, inputs.architecture)]
    runner = SubnetRunner(inputs.teacher.state_as(DTYPES[inputs.precision]), config, family)
    return [activation_scores(runner, torch.from_numpy(inputs.train.ids[:ACTIVATION_SEQUENCES].copy()).long())]


def _targets(config: SearchConfig, inputs: SearchInputs) -> list[int]:
    """Sizes to learn scores at; the reach of a space does not depend on scores, so any will do to ask for it."""
    genome = Genome(inputs.space.with_order(NATURAL), _scored(inputs))
    targets = target_costs(inputs.budget, genome.reach(inputs.budget.quantity, config.length))
    return targets[:1] if config.winners.winners == 1 else targets  # a single winner is the front's largest


def _scored(inputs: SearchInputs) -> Architecture:
    """The teacher's sizes with the likeliest vocabulary, under which scores are learned at the budget's sizes."""
    return with_rows(inputs.architecture, inputs.vocabularies.sizes[0])


_Batch = tuple[Any, Masks | None]


def _gradient_taker(teacher: Teacher, precision: str, device: str, threads: int) -> Callable[[_Batch], GateGradients]:
    """The teacher with gates, made once per process."""
    torch.set_num_threads(threads)
    teacher = teacher.here()
    state = {name: tensor.to(device) for name, tensor in teacher.state_as(DTYPES[precision]).items()}
    gated = GatedTeacher(state, teacher.config(), teacher.family())
    return lambda batch: gated.gradients(torch.from_numpy(batch[0].copy()).long(), batch[1])


def _learn(config: SearchConfig, inputs: SearchInputs, progress: Progress, workers: int) -> LearnedScores:
    per_step = max(1, config.scores.importance_tokens // config.length)
    ids, teacher = inputs.train.ids, inputs.teacher
    at_once = min(workers, -(-per_step // _BATCH_SEQUENCES))
    threads = config.machine.threads
    if at_once and not config.machine.address:  # few sequences, so more of this machine's cores for each
        threads *= workers // at_once
    make = partial(_gradient_taker, teacher, inputs.precision, inputs.device, threads)
    share = share_of(inputs.device, threads, inputs.architecture)
    with FanOut[_Batch, GateGradients](
        make, at_once, share, reads=[teacher.folder], name="worker that scores units"
    ) as fan_out:

        def collect(step: int, masks: Masks | None) -> GateGradients:
            start = step * per_step % len(ids)
            rows = ids[start : start + per_step]
            firsts = range(0, len(rows), _BATCH_SEQUENCES)
            batches = [(rows[first : first + _BATCH_SEQUENCES], masks) for first in firsts]
            gradients = GateGradients.join(fan_out.map(batches))
            loss = gradients.loss / gradients.tokens
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss of teacher {teacher.name} is not a number in {inputs.precision}: its weights hold NaN "
                    "or infinities, or it overflows; download it again, or give --precision fp32"
                )
            progress.update(step + 1, f"loss {loss:.2f}")
            return gradients

        return learn_scores(
            inputs.space, _scored(inputs), inputs.budget.quantity, config.length, _targets(config, inputs),
            config.scores.importance_steps, collect,
        )  # fmt: skip


def bind_genomes(config: SearchConfig, inputs: SearchInputs, ranking: Ranking) -> GenomeStack:
    """The genomes a search works with: one per learned ranking, or one where nothing was learned.

    Where rankings were learned at both ends of the budget there are also some between, whose scores are those of both
    ends by their distance: at sizes between they choose better units than either does.

    Raises:
        UserError: The space cannot meet the budget.
    """
    guides: list[UnitScores | None] = list(ranking.learned) or [None]
    sizes, family = None, inputs.teacher.family()

    def is_plain(architecture: Architecture) -> bool:
        return family.plain_class_refuses(architecture) is None

    if len(ranking.learned) == 2:
        high, low = _targets(config, inputs)
        guides += [blend(*ranking.learned, share) for share in _BETWEEN]
        sizes = [high, low, *(round(share * high + (1 - share) * low) for share in _BETWEEN)]
    genomes: list[Genome] = []
    meant: list[int] = []
    for size in inputs.vocabularies.sizes:
        kept = inputs.vocabularies.kept(size)
        # A ranking is meant for a size of the body, whose cost comes on top of the rows'.
        more = _rows_cost(inputs, size, config.length) - _rows_cost(inputs, inputs.vocabularies.sizes[0], config.length)
        own = []
        for guide in guides:
            scores = dict(ranking.others) | ({"taylor": guide} if guide is not None else {})
            scores = {order: scores[order] for order in inputs.space.orders() if order != NATURAL}
            own.append(Genome(inputs.space, inputs.architecture, scores, guide, is_plain, kept))
        is_last = size == inputs.vocabularies.sizes[-1] and not genomes
        if is_last or own[0].fits(inputs.budget, config.length):
            genomes += own
            meant += [one + more for one in sizes or ()]
    return GenomeStack(genomes, inputs.budget, config.length, meant or None)


def _rows_cost(inputs: SearchInputs, size: int | None, length: int) -> int:
    """What the teacher costs with a vocabulary of this size, in the budget's quantity."""
    return measure_cost(with_rows(inputs.architecture, size), inputs.budget.quantity, length)
