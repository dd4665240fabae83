"""The records of a report on proxies: how well each ranks a search's candidates as a short training does."""

from __future__ import annotations

from typing import ClassVar, Literal

from slm_ray.records.base import Part, Record
from slm_ray.records.search import Measurement, ModelCost


class ProxyMeasurements(Record):
    """A line of ``measurements.jsonl``: what was measured of one candidate now."""

    FILE: ClassVar[str] = "measurements.jsonl"
    trial: int
    measurements: dict[str, Measurement]


class ProxyValue(Part):
    """What a proxy says of one candidate, and what measuring it cost."""

    value: float
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0


class TrainedCandidate(Record):
    """A line of ``candidates.jsonl``; the last one of a trial counts."""

    FILE: ClassVar[str] = "candidates.jsonl"
    trial: int
    digest: str
    cost: ModelCost
    decided: str | None  # As in its trial
    status: Literal["done", "failed"]
    error: str | None = None
    proxies: dict[str, ProxyValue]  # By name
    tokens: int  # Tokens it was trained on
    first_loss: float | None  # Held-out loss before training, nats per token
    loss: float | None  # The same after training; None where the training failed
    flops: float  # Of the training
    seconds: float  # Of the training


class RankCorrelation(Part):
    """A rank correlation with its percentile bootstrap interval."""

    value: float | None  # In -1..1; None where it is undefined
    low: float | None = None  # Lower end of the 95% interval; None where it is undefined
    high: float | None = None  # Its upper end
    note: str | None = None  # Why something is undefined


class RankCorrelations(Part):
    """Kendall's tau-b and Spearman's rho."""

    kendall: RankCorrelation
    spearman: RankCorrelation


class ProxyCost(Part):
    """What a proxy costs; ``shared_flops`` once for all candidates."""

    flops_per_candidate: float
    seconds_per_candidate: float
    shared_flops: float = 0.0


class ProxyCorrelation(Part):
    """How a proxy ranks candidates, against their loss after and before training."""

    name: str
    # Whether less or more of it should mean a lower loss; correlations are turned so that a positive one means that it
    # does
    promises_lower_loss: Literal["less", "more"]
    cost: ProxyCost
    after: RankCorrelations
    before: RankCorrelations | None = None


class FailedCandidate(Part):
    """A candidate whose training failed."""

    trial: int
    error: str


class ProxyReport(Record):
    """``correlations.json``, written last: it says that the run is finished."""

    FILE: ClassVar[str] = "correlations.json"
    command: str
    run: str
    candidates: int
    tokens: int
    eval_tokens: int
    seed: int
    resamples: int
    failed: tuple[FailedCandidate, ...] = ()
    proxies: tuple[ProxyCorrelation, ...]
    training_cost: ProxyCost
