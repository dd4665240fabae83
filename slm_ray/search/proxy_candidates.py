"""Which candidates of a finished search to look at, and what is known of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_ray.config.errors import UserError
from slm_ray.models.scores import UnitScores
from slm_ray.models.teachers import Teacher
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search.registry import PROXIES

FEWEST_CANDIDATES = 4


@dataclass(frozen=True)
class SearchedTeacher:
    """What a finished search worked with, as far as its candidates are measured again.

    Attributes:
        teacher: The teacher.
        precision: ``fp32`` or ``bf16``.
        ids: ``[sequences, length]`` calibration tokens.
        specs: What each of the chosen trials keeps.
        scores: Unit scores by method, for the proxies that need them.
        score_flops: What making each method's scores costs, once for all candidates.
    """

    teacher: Teacher
    precision: str
    ids: NDArray[np.int32]
    specs: dict[int, SubnetSpec]
    scores: dict[str, UnitScores] = field(default_factory=dict)
    score_flops: dict[str, float] = field(default_factory=dict)


def choose_candidates(
    records: Sequence[dict[str, Any]], front: Collection[int], objective: str, count: int, seed: int
) -> list[dict[str, Any]]:
    """A spread of a search's candidates: half of the front, half of the others, each from its best to its worst.

    Both halves are cut into strata of equal size along their rank by the search's first objective, and one candidate is
    drawn from each, so that good, middling and bad ones are there whatever the search liked best.

    Args:
        records: The run's trials.
        front: Trials on its front.
        objective: The search's first objective.
        count: How many; all of them where there are fewer.
        seed: Of the draws.

    Returns:
        Records by rank, the best first.

    Raises:
        UserError: There are too few for a rank correlation.
    """
    sign = 1 if PROXIES[objective].minimise else -1
    done = [record for record in records if record["status"] == "done"]
    done.sort(key=lambda record: (sign * record["objectives"][objective], record["trial"]))
    if len(done) < FEWEST_CANDIDATES:
        raise UserError(
            f"a rank correlation needs at least {FEWEST_CANDIDATES} candidates, and the run has {len(done)} measured "
            "ones: give a run with more --trials"
        )
    inside = [record for record in done if record["trial"] in front]
    outside = [record for record in done if record["trial"] not in front]
    from_front = min(len(inside), max(count - count // 2, count - len(outside)))
    rng = np.random.default_rng(seed)
    chosen = {
        record["trial"]
        for group, wanted in ((inside, from_front), (outside, min(len(outside), count - from_front)))
        for record in _one_of_each_stratum(group, wanted, rng)
    }
    return [record for record in done if record["trial"] in chosen]


def _one_of_each_stratum(group: list[dict[str, Any]], wanted: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    strata = [stratum for stratum in np.array_split(np.arange(len(group)), wanted) if len(stratum)] if wanted else []
    return [group[int(rng.choice(stratum))] for stratum in strata]
