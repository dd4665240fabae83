"""Measures candidates in one process: the teacher's weights mapped, the calibration tokens at hand."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from slm_ray.models.runner import SubnetRunner
from slm_ray.models.scores import UnitScores
from slm_ray.models.teachers import Teacher
from slm_ray.records.search import Measurement
from slm_ray.records.subnet import SubnetSpec
from slm_ray.search.latency import measure_latency
from slm_ray.search.race import Rival
from slm_ray.search.registry import PROXIES
from slm_ray.search.staged import StagedLoss, TeacherKL, next_token_losses, perplexity_of, stage_ends
from slm_ray.search.static import block_influence_kept, importance_lost, magnitude_kept
from slm_ray.search.tasks import Outcome

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class EvaluatorSettings:
    """Everything a worker needs to measure candidates; small enough to send to each.

    Attributes:
        teacher: Where the teacher is.
        precision: ``fp32`` or ``bf16``: what is computed in.
        ids: ``[sequences, length]`` calibration tokens.
        proxies: The proxies to measure.
        stage_tokens: Where early stages of staged proxies end.
        confidence: One-sided confidence at which a candidate counts as beaten.
        threads: Threads a worker computes with.
        scores: Unit scores by method, for the proxies that need them.
        device: ``cpu`` or ``cuda``: what is computed on.
    """

    teacher: Teacher
    precision: str
    ids: NDArray[np.int32]
    proxies: tuple[str, ...]
    stage_tokens: tuple[int, ...]
    confidence: float
    threads: int
    scores: dict[str, UnitScores] = field(default_factory=dict)
    device: str = "cpu"


class Evaluator:
    """Measures any number of candidates of one teacher, one after the other."""

    def __init__(self, settings: EvaluatorSettings) -> None:
        """Map the teacher and prepare the proxies."""
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.device = torch.device(settings.device)
        self.ids = torch.from_numpy(settings.ids.astype(np.int64)).to(self.device)
        teacher = settings.teacher.here()
        self.config, self.family = teacher.config(), teacher.family()
        state = teacher.state_as(DTYPES[settings.precision])
        self.state = {name: tensor.to(self.device) for name, tensor in state.items()}
        self.runner = SubnetRunner(self.state, self.config, self.family)
        self._staged = {name: self._make_staged(name) for name in settings.proxies if PROXIES[name].staged}

    def _make_staged(self, name: str) -> StagedLoss:
        losses = TeacherKL(self.runner, self.ids) if name == "kl" else next_token_losses(self.runner)
        ends = stage_ends(len(self.ids), self.ids.shape[1], self.settings.stage_tokens)
        return StagedLoss(losses, self.ids, ends, self.settings.confidence)

    def evaluate(self, spec: SubnetSpec, rival: Rival | None = None) -> Outcome:
        """Measure one candidate with every proxy asked for.

        Args:
            spec: What it keeps.
            rival: Whom its staged proxy has to beat; None to measure on all tokens.
        """
        start = time.perf_counter()
        measurements: dict[str, Measurement] = {}
        values: dict[str, float] = {}
        decided: Literal["full", "dominated"] = "full"
        for name in self.settings.proxies:
            if name in self._staged:
                measured, estimate, decided = self._staged[name].measure(spec, rival)
                if name == "perplexity":
                    measured, estimate = _as_perplexity(measured), perplexity_of(estimate)
                measurements[name], values[name] = measured, estimate
            else:
                measurements[name] = measured = self._measure_once(name, spec)
                values[name] = measured.value
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"the measurement is no number: {values}")
        return Outcome(measurements=measurements, values=values, decided=decided, seconds=time.perf_counter() - start)

    def _measure_once(self, name: str, spec: SubnetSpec) -> Measurement:
        if name == "latency":
            return measure_latency(self.state, self.config, self.family, spec, self.ids.shape[1])
        start = time.perf_counter()
        scores = self.settings.scores[PROXIES[name].scores or ""]
        functions = {
            "importance": importance_lost,
            "magnitude": magnitude_kept,
            "block_influence": block_influence_kept,
        }
        value = functions[name](spec, scores)
        return Measurement(value=value, stderr=None, tokens=0, seconds=time.perf_counter() - start)


def _as_perplexity(loss: Measurement) -> Measurement:
    """A mean loss as a perplexity, its standard error by the delta method; the blocks stay losses."""
    value = perplexity_of(loss.value)
    stderr = None if loss.stderr is None else value * loss.stderr
    return loss.model_copy(update={"value": value, "stderr": stderr})
