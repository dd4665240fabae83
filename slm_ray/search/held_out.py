"""Measuring chosen models on texts that decide nothing: the held-out part, and text of another kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from slm_ray.data import TokenShards
from slm_ray.records.search import Measurement
from slm_ray.records.subnet import SubnetSpec
from slm_ray.runtime.progress import Console, Progress
from slm_ray.search import spending
from slm_ray.search.config import SearchConfig
from slm_ray.search.evaluator import EvaluatorSettings
from slm_ray.search.finish import Chosen, perplexity_fields
from slm_ray.search.inputs import SearchInputs
from slm_ray.search.measuring import Measurements, measure_in_full
from slm_ray.search.phases import HELD_OUT, OTHER_TEXT, PhaseRecord

Group = tuple[SearchInputs, list[Chosen]]
_FIELDS = {HELD_OUT: "held_out", OTHER_TEXT: "other"}  # what figures on a text are called in results


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


class TextMeasurement:
    """Measures models that are given in groups, each cut from its own inputs' teacher, and notes what it cost."""

    def __init__(self, config: SearchConfig, phases: PhaseRecord, console: Console) -> None:
        """Set up.

        Args:
            config: The options.
            phases: Where costs are noted.
            console: Where to say how far it is.
        """
        self._config, self._phases, self._console = config, phases, console

    def measure(self, label: str, text: TokenShards, first: Group, second: Group) -> list[dict[str, Any]]:
        """Measure two groups on a text; side by side where they have the same inputs.

        Args:
            label: ``held-out text`` or ``other text``.
            text: Its tokens.
            first: Inputs, and what was cut from their teacher.
            second: The same.

        Returns:
            The models' entries with their perplexity, in order.
        """
        groups = [(first[0], [*first[1], *second[1]])] if first[0] is second[0] else [first, second]
        progress = Progress(self._console, label, len(first[1]) + len(second[1]), "models")
        entries: list[dict[str, Any]] = []
        for inputs, chosen in groups:
            specs, on_done = [one.spec for one in chosen], partial(_update_from, progress, len(entries))
            measured = measure_held_out(self._settings(inputs, text), specs, on_done, self._config.workers)
            pairs = zip(chosen, measured, strict=True)
            entries += [one.entry | perplexity_fields(_FIELDS[label], value) for one, value in pairs]
            spending.pay_held_out(self._phases, label, text.num_tokens, chosen)
        return entries

    def _settings(self, inputs: SearchInputs, text: TokenShards) -> EvaluatorSettings:
        return EvaluatorSettings(
            teacher=inputs.teacher, precision=inputs.precision, ids=text.ids, proxies=("perplexity",),
            stage_tokens=(), confidence=self._config.confidence, threads=self._config.threads, device=inputs.device,
        )  # fmt: skip


def _update_from(progress: Progress, before: int, done: int) -> None:
    progress.update(before + done)
