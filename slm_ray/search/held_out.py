"""Measuring chosen models on all held-out tokens, one model per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util import ActorPool

from slm_ray.architecture import SubnetSpec
from slm_ray.proxies.evaluator import Evaluator, EvaluatorSettings
from slm_ray.proxies.measurement import Measurement


class _HeldOutWorker:
    def __init__(self, settings: EvaluatorSettings) -> None:
        self._evaluator = Evaluator(settings)

    def measure(self, spec: SubnetSpec) -> Measurement:
        return self._evaluator.evaluate(spec).measurements["perplexity"]


def measure_held_out(
    settings: EvaluatorSettings, specs: Sequence[SubnetSpec], workers: int, on_done: Callable[[int], None]
) -> list[Measurement]:
    """Perplexity of each sub-network on all the tokens of ``settings``.

    Args:
        settings: With the held-out tokens and no early stages.
        specs: The sub-networks.
        workers: How many to measure at once.
        on_done: Told how many are done, as they finish.

    Returns:
        One measurement per sub-network, in their order.
    """
    shared = ray.put(settings)
    worker = ray.remote(num_cpus=settings.threads)(_HeldOutWorker)
    actors: list[Any] = [worker.remote(shared) for _ in range(min(workers, len(specs)))]
    pool = ActorPool(actors)
    results = []
    for measured in pool.map(lambda actor, spec: actor.measure.remote(spec), list(specs)):
        results.append(measured)
        on_done(len(results))
    for actor in actors:
        ray.kill(actor)
    return results
