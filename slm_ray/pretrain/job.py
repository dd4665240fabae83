"""One model's training, as plain values that travel to every worker."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

AUTO = 0  # as a micro-batch: find the largest that fits


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything a worker needs to know. Its start is the first checkpoint in ``storage``.

    Attributes:
        name: The model's name within the run, e.g. ``winner-0.random.seed1``.
        storage: Where its checkpoints are: a folder or a URI.
        seed: Seed of the order of sequences, and of dropout.
        total_steps: Optimiser steps to train.
        schedule_steps: Steps that the learning-rate schedule spans.
        batch_size: Sequences of one step, over all workers.
        micro_batch: Sequences at once in a worker; ``AUTO``: find it; None: what suits the device.
        shards: Folder of the token shards.
        sequences: How many of the shards' sequences are trained on; None: all.
        documents: ``separate`` or ``joined``.
        held_out: Folder of the held-out tokens.
        teacher: Folder of the teacher in the cache, for ``full`` distillation.
        store: Folder of the logit store.
        distill: One of the kinds of signal, or ``none``.
        flops: FLOPs per trained token, ``own`` and the ``teacher``'s, and those of the whole ``capture`` of the store.
        options: The remaining options by name, as in :class:`slm_ray.pretrain.config.PretrainConfig`.
    """

    name: str
    storage: str
    seed: int
    total_steps: int
    schedule_steps: int
    batch_size: int
    micro_batch: int | None
    shards: str
    sequences: int | None
    documents: str
    held_out: str
    teacher: str | None
    store: str | None
    distill: str
    flops: dict[str, float]
    options: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``TrainJob(**values)`` reads them back."""
        return dataclasses.asdict(self)

    def option(self, name: str) -> Any:
        """One of the remaining options."""
        return self.options[name]
