"""Measuring chosen models on all held-out tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slm_ray.architecture import SubnetSpec
from slm_ray.proxies.evaluator import EvaluatorSettings
from slm_ray.proxies.measurement import Measurement
from slm_ray.proxies.measuring import Measurements, measure_in_full


def measure_held_out(
    settings: EvaluatorSettings, specs: Sequence[SubnetSpec], on_done: Callable[[int], None], at_once: int | None = None
) -> list[Measurement]:
    """Perplexity of each sub-network on all the tokens of ``settings``.

    Args:
        settings: With the held-out tokens and no early stages.
        specs: The sub-networks.
        on_done: Told how many are done, as they finish.
        at_once: The most that are measured at once; None: as many as the cluster has room for.

    Returns:
        One measurement per sub-network, in their order.
    """
    found: dict[int, Measurement] = {}

    def take(number: int, measured: Measurements) -> None:
        found[number] = measured["perplexity"]
        on_done(len(found))

    measure_in_full(settings, dict(enumerate(specs)), at_once, take)
    return [found[number] for number in range(len(specs))]
