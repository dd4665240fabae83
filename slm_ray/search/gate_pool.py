"""Gate gradients of one step's tokens, shared out as Ray tasks.

On processors they are tasks and not actors: processes, which take seconds to import torch, go on to other tasks. Trials
have others, for Ray makes no actor of a process that has run tasks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.util import ActorPool

from slm_ray.models.gates import GatedTeacher, GateGradients, Masks
from slm_ray.models.teachers import Teacher
from slm_ray.search.evaluator import DTYPES
from slm_ray.search.placing import actor_options, room

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


class _GateActor:
    """The same on a GPU, whose memory is free again when the actor goes."""

    def __init__(self, teacher: Teacher, precision: str, device: str, threads: int) -> None:
        self._fixed = (teacher, precision, device, threads)

    def gradients(self, ids: NDArray[np.int32], masks: Masks | None) -> GateGradients:
        """Gate gradients of a few sequences."""
        found: GateGradients = _gradients(*self._fixed, ids, masks)
        return found


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
        self._fixed = (teacher, precision, device, threads)
        self._task = ray.remote(num_cpus=threads)(_gradients)
        self._actors: ActorPool | None = None
        if device == "cuda":
            count = max(1, room(device, threads, ray.cluster_resources()))
            kind = ray.remote(**actor_options(device, threads))(_GateActor)
            self._actors = ActorPool([kind.remote(*self._fixed) for _ in range(count)])
        self._ids, self._per_step = ids, per_step

    def collect(self, step: int, masks: Masks | None) -> GateGradients:
        """Gate gradients of one step's sequences under masks, in the order of the sequences."""
        start = step * self._per_step % len(self._ids)
        rows = self._ids[start : start + self._per_step]
        shared = ray.put(masks)
        batches = [rows[first : first + _BATCH_SEQUENCES] for first in range(0, len(rows), _BATCH_SEQUENCES)]
        if self._actors is not None:
            found = self._actors.map(lambda actor, batch: actor.gradients.remote(batch, shared), batches)
            return GateGradients.join(list(found))
        return GateGradients.join(ray.get([self._task.remote(*self._fixed, batch, shared) for batch in batches]))
