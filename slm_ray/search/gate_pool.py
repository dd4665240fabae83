"""Gate gradients of one step's tokens, shared out as Ray tasks.

They are tasks and not actors, so that the processes, which took seconds to import torch, are there for later trials.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from slm_ray.models.gates import GatedTeacher, GateGradients, Masks
from slm_ray.models.teachers import Teacher
from slm_ray.proxies.evaluator import DTYPES
from slm_ray.proxies.placing import task_options

# Sequences go through the model in pairs whatever the number of workers, so that the result does not depend on it.
_BATCH_SEQUENCES = 2


@lru_cache(maxsize=1)
def _gated(teacher: Teacher, precision: str, device: str) -> GatedTeacher:
    """The teacher with gates, made once per process."""
    teacher = teacher.here()
    state = {name: tensor.to(device) for name, tensor in teacher.state_as(DTYPES[precision]).items()}
    return GatedTeacher(state, teacher.config(), teacher.family())


def _gradients(
    teacher: Teacher, precision: str, device: str, threads: int, ids: NDArray[np.int32], masks: Masks | None
) -> Any:
    torch.set_num_threads(threads)
    return _gated(teacher, precision, device).gradients(torch.from_numpy(ids.copy()).long(), masks)


class GatePool:
    """Takes the gate gradients of numbered steps of a token array."""

    def __init__(
        self, teacher: Teacher, precision: str, ids: NDArray[np.int32], per_step: int, threads: int, device: str = "cpu"
    ) -> None:
        """Set up.

        Args:
            teacher: The teacher.
            precision: ``fp32`` or ``bf16``.
            ids: ``[sequences, length]`` tokens of all steps.
            per_step: Sequences of one step.
            threads: Threads, and CPUs, of each task.
            device: ``cpu`` or ``cuda``.
        """
        self._task = ray.remote(**task_options(device, threads))(_gradients)
        self._fixed = (teacher, precision, device, threads)
        self._ids, self._per_step = ids, per_step

    def collect(self, step: int, masks: Masks | None) -> GateGradients:
        """Gate gradients of one step's sequences under masks, in the order of the sequences."""
        start = step * self._per_step % len(self._ids)
        rows = self._ids[start : start + self._per_step]
        shared = ray.put(masks)
        parts = [
            self._task.remote(*self._fixed, rows[first : first + _BATCH_SEQUENCES], shared)
            for first in range(0, len(rows), _BATCH_SEQUENCES)
        ]
        return GateGradients.join(ray.get(parts))
