"""Measuring chosen models on all held-out tokens, one model per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray

from slm_ray.architecture import SubnetSpec
from slm_ray.proxies.evaluator import Evaluator, EvaluatorSettings
from slm_ray.proxies.measurement import Measurement
from slm_ray.proxies.measuring import Measurements, measure_in_full
from slm_ray.proxies.placing import room


def _measure(settings: EvaluatorSettings, spec: SubnetSpec) -> Measurement:
    return Evaluator(settings).evaluate(spec).measurements["perplexity"]


def measure_held_out(
    settings: EvaluatorSettings, specs: Sequence[SubnetSpec], on_done: Callable[[int], None], at_once: int | None = None
) -> list[Measurement]:
    """Perplexity of each sub-network on all the tokens of ``settings``.

    Args:
        settings: With the held-out tokens and no early stages.
        specs: The sub-networks.
        on_done: Told how many are done, as they finish.
        at_once: The most that are measured at once; None: as many as the cluster has CPUs for.

    Returns:
        One measurement per sub-network, in their order.
    """
    if settings.device == "cuda":
        return _on_gpus(settings, specs, on_done, at_once)
    shared = ray.put(settings)
    task = ray.remote(num_cpus=settings.threads)(_measure)
    results: list[ray.ObjectRef] = []
    waiting: list[ray.ObjectRef] = []
    for spec in specs:
        if at_once is not None and len(waiting) >= at_once:
            _, waiting = ray.wait(waiting)
            on_done(len(results) - len(waiting))
        results.append(task.remote(shared, spec))
        waiting.append(results[-1])
    while waiting:
        _, waiting = ray.wait(waiting)
        on_done(len(results) - len(waiting))
    return list(ray.get(results))


def _on_gpus(
    settings: EvaluatorSettings, specs: Sequence[SubnetSpec], on_done: Callable[[int], None], at_once: int | None
) -> list[Measurement]:
    """The same by actors, which go afterwards and leave a GPU's memory to others."""
    found: dict[int, Measurement] = {}

    def take(number: int, measured: Measurements) -> None:
        found[number] = measured["perplexity"]
        on_done(len(found))

    most = max(1, at_once or room(settings.device, settings.threads, ray.cluster_resources()))
    measure_in_full(settings, dict(enumerate(specs)), most, take)
    return [found[number] for number in range(len(specs))]
