"""Measuring chosen candidates in full, with no rival to stop them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ray
from ray.util import ActorPool

from slm_ray.architecture import SubnetSpec
from slm_ray.proxies.evaluator import Evaluator, EvaluatorSettings
from slm_ray.proxies.measurement import Measurement
from slm_ray.proxies.placing import actor_options

Measurements = dict[str, Measurement]


class Measurer:
    """An evaluator that answers with the trial it was asked about; runs as a Ray actor."""

    def __init__(self, settings: EvaluatorSettings) -> None:
        """Map the teacher and prepare the proxies."""
        self._evaluator = Evaluator(settings)

    def measure(self, trial: int, spec: SubnetSpec) -> tuple[int, Measurements]:
        """Measure a candidate on all tokens, with every proxy."""
        return trial, self._evaluator.evaluate(spec).measurements


def measure_in_full(
    settings: EvaluatorSettings,
    specs: Mapping[int, SubnetSpec],
    workers: int,
    on_done: Callable[[int, Measurements], None],
) -> None:
    """Measure sub-networks with every proxy of ``settings``, on all of its tokens.

    Args:
        settings: What to measure with; no early stages.
        specs: What each trial keeps.
        workers: How many at once.
        on_done: Told of each as it is measured.
    """
    shared = ray.put(settings)
    actor = ray.remote(**actor_options(settings.device, settings.threads))(Measurer)
    pool = ActorPool([actor.remote(shared) for _ in range(min(workers, len(specs)))])
    for trial, found in pool.map_unordered(lambda one, item: one.measure.remote(*item), list(specs.items())):
        on_done(trial, found)
