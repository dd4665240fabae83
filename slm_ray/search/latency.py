"""Measured latency of a candidate as the model it would be, slicing not included."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from slm_ray.models.extraction import extract
from slm_ray.models.families import Family
from slm_ray.records.search import Measurement
from slm_ray.records.subnet import SubnetSpec
from slm_ray.runtime.hardware import seconds_of

_REPEATS = 5
FORWARD_PASSES = _REPEATS + 1  # one to warm up


@torch.no_grad()
def measure_latency(
    state: Mapping[str, torch.Tensor], config: Any, family: Family, spec: SubnetSpec, sequence_length: int
) -> Measurement:
    """Seconds per token of a forward pass over one sequence: the median of five after one warm-up.

    Args:
        state: The teacher's state dict.
        config: Its config.
        family: Its family.
        spec: What is kept.
        sequence_length: Tokens in the sequence.
    """
    start = time.perf_counter()
    student = extract(state, config, family, spec)
    device = next(student.parameters()).device
    ids = torch.arange(sequence_length, device=device)[None] % config.vocab_size
    seconds = []
    for _ in range(FORWARD_PASSES):
        taken = seconds_of(lambda: student.base_model(ids, use_cache=False), device)
        seconds.append(taken / sequence_length)
    timed = np.array(seconds[1:])
    stderr = float(timed.std(ddof=1) / np.sqrt(len(timed)))
    value, taken = float(np.median(timed)), time.perf_counter() - start
    return Measurement(value=value, stderr=stderr, tokens=sequence_length, seconds=taken)
