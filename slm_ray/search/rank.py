"""Unit scores for a search: which are needed, how they are made, and the genomes bound to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from slm_ray.models.importance import activation_scores, magnitude_scores
from slm_ray.models.runner import SubnetRunner
from slm_ray.models.scores import UnitScores, cached_scores
from slm_ray.records.files import cache_folder
from slm_ray.runtime.progress import Progress
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import DTYPES
from slm_ray.search.gate_pool import GatePool
from slm_ray.search.genome import Genome
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.registry import PROXIES
from slm_ray.search.scores import CURVATURE, LearnedScores, blend, learn_scores, target_costs
from slm_ray.search.space import NATURAL
from slm_ray.search.stack import GenomeStack

ACTIVATION_SEQUENCES = 16
_METHOD_VERSION = 1
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


def needed_methods(config: SearchConfig, inputs: SearchInputs) -> set[str]:
    """The score methods that the space's orders and the proxies ask for."""
    orders = {order for order in inputs.space.orders() if order != NATURAL}
    return orders | {PROXIES[name].scores or "" for name in config.needed_proxies()} - {""}


def rank_units(config: SearchConfig, inputs: SearchInputs, progress: Progress) -> Ranking:
    """Make every unit score the run needs, or read it from the cache.

    Args:
        config: The options.
        inputs: What the search starts from.
        progress: Told how many steps are done.
    """
    return _rank_methods(config, inputs, needed_methods(config, inputs), progress)


def scores_by_method(
    config: SearchConfig, inputs: SearchInputs, methods: set[str], progress: Progress
) -> dict[str, UnitScores]:
    """Scores of the whole teacher for proxies that are sums of them, made as a search makes them.

    Args:
        config: The options.
        inputs: What the search starts from.
        methods: Which scores.
        progress: Told how many steps are done.
    """
    return _rank_methods(config, inputs, methods, progress).by_method()


def _rank_methods(config: SearchConfig, inputs: SearchInputs, methods: set[str], progress: Progress) -> Ranking:
    others = {
        method: _cached(_key(inputs, method), partial(_simple_list, inputs, method))[0][0]
        for method in sorted(methods - {"taylor"})
    }
    if "taylor" not in methods:
        return Ranking((), None, others, 0)
    key = _key(inputs, "taylor") | {
        "steps": config.importance_steps, "step_tokens": config.importance_tokens, "curvature": CURVATURE,
        "space": inputs.space.digest, "targets": _targets(config, inputs), "version": _METHOD_VERSION,
    }  # fmt: skip

    def compute() -> list[UnitScores]:
        learned = _learn(config, inputs, progress)
        return [learned.one_shot, *learned.by_target]

    found, was_cached = _cached(key, compute)
    tokens = 0 if was_cached else config.importance_steps * config.importance_tokens
    return Ranking(tuple(found[1:]), found[0], others, tokens)


def _cached(key: dict[str, Any], compute: Any) -> tuple[list[UnitScores], bool]:
    return cached_scores(cache_folder(), key, compute)


def _key(inputs: SearchInputs, method: str) -> dict[str, Any]:
    tokens = None if method == "magnitude" else inputs.train.digest
    return {"method": method, "teacher": inputs.teacher.digest, "tokens": tokens, "precision": inputs.precision}


def _simple_list(inputs: SearchInputs, method: str) -> list[UnitScores]:
    return [_simple_scores(inputs, method)]


def _simple_scores(inputs: SearchInputs, method: str) -> UnitScores:
    config, family = inputs.teacher.config(), inputs.teacher.family()
    if method == "magnitude":
        return magnitude_scores(inputs.teacher.state(), family, inputs.architecture)
    runner = SubnetRunner(inputs.teacher.state_as(DTYPES[inputs.precision]), config, family)
    return activation_scores(runner, torch.from_numpy(inputs.train.ids[:ACTIVATION_SEQUENCES].copy()).long())


def _targets(config: SearchConfig, inputs: SearchInputs) -> list[int]:
    """Sizes to learn scores at; the reach of a space does not depend on scores, so any will do to ask for it."""
    space = inputs.space.with_order(NATURAL)
    genome = Genome(space, inputs.architecture)
    return target_costs(inputs.budget, genome.reach(inputs.budget.quantity, config.sequence_length))


def _learn(config: SearchConfig, inputs: SearchInputs, progress: Progress) -> LearnedScores:
    per_step = max(1, config.importance_tokens // config.sequence_length)
    pool = GatePool(inputs.teacher, inputs.precision, inputs.train.ids, per_step, config.threads, inputs.device)

    def collect(step: int, masks: Any) -> Any:
        gradients = pool.collect(step, masks)
        progress.update(step + 1, f"loss {gradients.loss / gradients.tokens:.2f}")
        return gradients

    return learn_scores(
        inputs.space, inputs.architecture, inputs.budget.quantity, config.sequence_length,
        _targets(config, inputs), config.importance_steps, collect,
    )  # fmt: skip


def bind_genomes(config: SearchConfig, inputs: SearchInputs, ranking: Ranking) -> GenomeStack:
    """The genomes a search works with: one per learned ranking, or one where nothing was learned.

    Where rankings were learned at both ends of the budget there are also some between, whose scores are those of both
    ends by their distance: at sizes between they choose better units than either does.

    Raises:
        UserError: The space cannot meet the budget.
    """
    guides: list[UnitScores | None] = list(ranking.learned) or [None]
    sizes = None
    if len(ranking.learned) == 2:
        high, low = _targets(config, inputs)
        guides += [blend(*ranking.learned, share) for share in _BETWEEN]
        sizes = [high, low, *(round(share * high + (1 - share) * low) for share in _BETWEEN)]
    genomes = []
    for guide in guides:
        scores = dict(ranking.others) | ({"taylor": guide} if guide is not None else {})
        scores = {order: scores[order] for order in inputs.space.orders() if order != NATURAL}
        genomes.append(Genome(inputs.space, inputs.architecture, scores, guide=guide))
    return GenomeStack(genomes, inputs.budget, config.sequence_length, sizes)
