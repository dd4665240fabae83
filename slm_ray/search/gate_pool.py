"""Gate gradients of one step's tokens, shared out over Ray actors."""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.util import ActorPool

from slm_ray.models.gates import GatedTeacher, GateGradients, Masks
from slm_ray.models.teachers import Teacher
from slm_ray.proxies.evaluator import DTYPES

# Sequences go through the model in pairs whatever the number of workers, so that the result does not depend on it.
_BATCH_SEQUENCES = 2


class _GateWorker:
    """One process that holds a teacher with gates."""

    def __init__(self, teacher: Teacher, precision: str, ids: NDArray[np.int32], threads: int) -> None:
        torch.set_num_threads(threads)
        self._gated = GatedTeacher(teacher.state_as(DTYPES[precision]), teacher.config(), teacher.family())
        self._ids = torch.from_numpy(np.ascontiguousarray(ids)).long()

    def gradients(self, start: int, stop: int, masks: Masks | None) -> GateGradients:
        return self._gated.gradients(self._ids[start:stop], masks)


class GatePool:
    """Workers that take the gate gradients of numbered steps of a token array."""

    def __init__(
        self, teacher: Teacher, precision: str, ids: NDArray[np.int32], per_step: int, workers: int, threads: int
    ) -> None:
        """Start the workers.

        Args:
            teacher: The teacher.
            precision: ``fp32`` or ``bf16``.
            ids: ``[sequences, length]`` tokens of all steps.
            per_step: Sequences of one step.
            workers: How many processes.
            threads: Threads of each.
        """
        shared = ray.put(ids)
        worker = ray.remote(num_cpus=threads)(_GateWorker)
        self._actors: list[Any] = [worker.remote(teacher, precision, shared, threads) for _ in range(workers)]
        self._pool = ActorPool(self._actors)
        self._per_step, self._count = per_step, len(ids)

    def collect(self, step: int, masks: Masks | None) -> GateGradients:
        """Gate gradients of one step's sequences under masks, in the order of the sequences."""
        start = step * self._per_step % self._count
        stop = min(start + self._per_step, self._count)
        pairs = [(first, min(first + _BATCH_SEQUENCES, stop)) for first in range(start, stop, _BATCH_SEQUENCES)]
        shared = ray.put(masks)
        parts = self._pool.map(lambda actor, pair: actor.gradients.remote(*pair, shared), pairs)
        return GateGradients.join(list(parts))

    def close(self) -> None:
        """End the workers, so that their CPUs are free."""
        for actor in self._actors:
            ray.kill(actor)
