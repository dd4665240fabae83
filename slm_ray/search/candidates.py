"""A finished search opened again: its candidates as sub-networks, with what proxies need to measure them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slm_ray.config.base import build_config
from slm_ray.config.errors import UserError
from slm_ray.records.base import read_record
from slm_ray.records.cost import flops_per_token
from slm_ray.records.run import RunRecord, check_unchanged
from slm_ray.records.search import SearchInputsRecord, SearchResult, Trial, read_search
from slm_ray.records.subnet import SubnetSpec
from slm_ray.runtime.progress import Console, Progress
from slm_ray.search.config import SearchConfig
from slm_ray.search.registry import PROXIES

if TYPE_CHECKING:
    from slm_ray.models.scores import UnitScores
    from slm_ray.models.teachers import Teacher
    from slm_ray.search.inputs import SearchInputs

FEWEST_CANDIDATES = 4


@dataclass(frozen=True)
class SearchedTeacher:
    """What a finished search worked with, as far as its candidates are measured again."""

    teacher: Teacher  # The teacher
    precision: str  # ``fp32`` or ``bf16``
    ids: NDArray[np.int32]  # ``[sequences, length]`` calibration tokens
    specs: dict[int, SubnetSpec]  # What each of the chosen trials keeps
    scores: dict[str, UnitScores] = field(default_factory=dict)  # Unit scores by method, for the proxies that need them
    # What making each method's scores costs, once for all candidates
    score_flops: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FinishedSearch:
    """A finished search's records and options."""

    path: Path
    config: SearchConfig
    trials: tuple[Trial, ...]
    result: SearchResult

    @classmethod
    def open(cls, path: Path) -> FinishedSearch:
        """Read a run folder; nothing is loaded or computed."""
        found = read_search(path)
        config = build_config(SearchConfig, found.run.options, source=str(path / RunRecord.FILE))
        if not found.trials:
            raise UserError(f"{path} has no trials in {Trial.FILE}: give the folder of a finished search")
        if found.result is None:
            raise UserError(f"the search in {path} is not finished: slm-ray search --resume {path}")
        return cls(path, config, found.trials, found.result)

    @property
    def front(self) -> tuple[int, ...]:
        """Trials on its front, the best first."""
        return tuple(member.trial for member in self.result.front)

    def load(
        self, trials: Collection[int], proxies: Collection[str], console: Console, workers: int
    ) -> SearchedTeacher:
        """Load what the search worked with; Ray must run where there are workers."""
        from slm_ray.search.inputs import prepare_inputs
        from slm_ray.search.unit_scores import bind_genomes, rank_units
        from slm_ray.search.winners import spec_of

        before = read_record(self.path, SearchInputsRecord)
        inputs = prepare_inputs(self.config, console, before.precision)
        check_unchanged(self.path, before, inputs.record(), "have its candidates made again")
        if not inputs.vocabularies.is_whole:
            raise UserError(
                f"candidates of {self.path} have vocabularies of their own, and proxies are compared over one: give a "
                "search with --keep-vocabulary"
            )
        progress = Progress(console, "unit importance", self.config.scores.importance_steps, "steps")
        stack = bind_genomes(self.config, inputs, rank_units(self.config, inputs, progress, workers))
        specs = {trial.trial: spec_of(stack, trial) for trial in self.trials if trial.trial in set(trials)}
        methods = {PROXIES[name].scores or "" for name in proxies if name in PROXIES} - {""}
        scores = rank_units(self.config, inputs, progress, workers, methods).by_method()
        flops = {method: self._score_flops(method, inputs) for method in methods}
        return SearchedTeacher(inputs.teacher, inputs.precision, inputs.calibration.ids, specs, scores, flops)

    def _score_flops(self, method: str, inputs: SearchInputs) -> float:
        """What scores of the whole teacher cost: none for its weights alone, else passes over a few sequences."""
        from slm_ray.search.unit_scores import ACTIVATION_SEQUENCES

        if method == "magnitude":
            return 0.0
        length = self.config.length
        forward = flops_per_token(inputs.architecture, length)
        if method == "activation":
            return float(min(ACTIVATION_SEQUENCES, len(inputs.train.ids)) * length * forward)
        # A forward pass, and a backward pass for activations only, which costs as much.
        return float(2 * self.config.scores.importance_tokens * forward)


def choose_candidates(
    trials: Sequence[Trial], front: Collection[int], objective: str, count: int, seed: int
) -> list[Trial]:
    """A spread of a search's candidates: half of the front, half of the others, each from its best to its worst.

    Both halves are cut into strata of equal size along their rank by the search's first objective, and one candidate is
    drawn from each, so that good, middling and bad ones are there whatever the search liked best.
    """
    sign = 1 if PROXIES[objective].minimise else -1
    done = [(sign * trial.objectives[objective], trial) for trial in trials if trial.objectives is not None]
    done.sort(key=lambda entry: (entry[0], entry[1].trial))
    ranked = [trial for _, trial in done]
    if len(ranked) < FEWEST_CANDIDATES:
        raise UserError(
            f"a rank correlation needs at least {FEWEST_CANDIDATES} candidates, and the run has {len(ranked)} measured "
            "ones: give a run with more --trials"
        )
    inside = [trial for trial in ranked if trial.trial in front]
    outside = [trial for trial in ranked if trial.trial not in front]
    from_front = min(len(inside), max(count - count // 2, count - len(outside)))
    rng = np.random.default_rng(seed)
    chosen = {
        trial.trial
        for group, wanted in ((inside, from_front), (outside, min(len(outside), count - from_front)))
        for trial in one_of_each_stratum(group, wanted, rng)
    }
    return [trial for trial in ranked if trial.trial in chosen]


def one_of_each_stratum(group: Sequence[Trial], wanted: int, rng: np.random.Generator) -> list[Trial]:
    """One trial drawn from each of so many parts of equal size."""
    strata = [stratum for stratum in np.array_split(np.arange(len(group)), wanted) if len(stratum)] if wanted else []
    return [group[int(rng.choice(stratum))] for stratum in strata]
