"""Measuring chosen candidates in full, with no rival to stop them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping

import ray
from ray.util import ActorPool

from slm_ray.records.search import Measurement
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search.evaluator import Evaluator, EvaluatorSettings
from slm_ray.search.placing import actor_options, room

Measurements = dict[str, Measurement]
_Found = tuple[int, Measurements]


class Measurer:
    """An evaluator that answers with the trial it was asked about; runs as a Ray actor."""

    def __init__(self, settings: EvaluatorSettings) -> None:
        """Map the teacher and prepare the proxies."""
        self._evaluator = Evaluator(settings)

    def measure(self, trial: int, spec: SubnetSpec) -> _Found:
        """Measure a candidate on all tokens, with every proxy."""
        return trial, self._evaluator.evaluate(spec).measurements


def measure_in_full(
    settings: EvaluatorSettings,
    specs: Mapping[int, SubnetSpec],
    workers: int | None,
    on_done: Callable[[int, Measurements], None],
) -> None:
    """Measure sub-networks with every proxy of ``settings``, on all of its tokens.

    Args:
        settings: What to measure with; no early stages.
        specs: What each trial keeps.
        workers: How many at once; None: as many as the cluster has room for.
        on_done: Told of each as it is measured.
    """
    measured = _by_actors if settings.device == "cuda" else _by_tasks
    for trial, found in measured(settings, specs, workers):
        on_done(trial, found)


def _by_actors(settings: EvaluatorSettings, specs: Mapping[int, SubnetSpec], workers: int | None) -> Iterator[_Found]:
    """On GPUs: actors go when it is over, and leave a GPU's memory to others."""
    most = max(1, workers or room(settings.device, settings.threads, ray.cluster_resources()))
    shared = ray.put(settings)
    actor = ray.remote(**actor_options(settings.device, settings.threads))(Measurer)
    pool = ActorPool([actor.remote(shared) for _ in range(min(most, len(specs)))])
    yield from pool.map_unordered(lambda one, item: one.measure.remote(*item), list(specs.items()))


def _by_tasks(settings: EvaluatorSettings, specs: Mapping[int, SubnetSpec], workers: int | None) -> Iterator[_Found]:
    """On processors: one task a candidate, in processes that Ray keeps from one call to the next."""
    shared = ray.put(settings)
    task, call = ray.remote(num_cpus=settings.threads)(_measure), uuid.uuid4().hex
    waiting: list[ray.ObjectRef] = []
    for item in specs.items():
        if workers is not None and len(waiting) >= workers:
            (first,), waiting = ray.wait(waiting)
            yield ray.get(first)
        waiting.append(task.remote(call, shared, *item))
    while waiting:
        (first,), waiting = ray.wait(waiting)
        yield ray.get(first)


_ready: dict[str, Measurer] = {}  # of this process: what the call it last worked for has prepared


def _measure(call: str, settings: EvaluatorSettings, trial: int, spec: SubnetSpec) -> _Found:
    if call not in _ready:
        _ready.clear()
        _ready[call] = Measurer(settings)
    return _ready[call].measure(trial, spec)
