"""Step time and peak memory of training: on the text alone, with the teacher in the loop, and from a logit store.

    python benchmarks/train_step.py runs/NAME/winners/0 [--store FOLDER] [--shards FOLDER]

Steps are interleaved and medians compared; beside each stands the time of its own matrix products, without attention's,
timed one by one in a step of their own. Peak memory is that of a fresh process per kind of step.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slm_ray.data.shards import TokenShards
from slm_ray.distill.losses import Divergence
from slm_ray.distill.online import OnlineTeacher
from slm_ray.distill.store import LogitStore
from slm_ray.models.loading import load_student
from slm_ray.models.precision import DTYPES
from slm_ray.models.teachers import load_teacher
from slm_ray.pretrain.batches import Batches
from slm_ray.pretrain.components import OptimizerConfig
from slm_ray.pretrain.engine import autocast
from slm_ray.pretrain.module import StudentLoss
from slm_ray.pretrain.optimizers import build_optimizer
from slm_ray.runtime.environment import usable_cpus

CPU = torch.device("cpu")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmm_", "linear")


class Products(TorchDispatchMode):
    """Adds up the seconds of matrix products."""

    seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds += time.perf_counter() - start if func.overloadpacket.__name__ in PRODUCTS else 0.0
        return result


class Steps:
    """One training step of each kind, on one batch."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        dtype = DTYPES[arguments.precision]
        student = load_student(Path(arguments.student), arguments.student).train()
        self.module = StudentLoss(student, Divergence(), dtype)
        self.optimizer = build_optimizer(OptimizerConfig(learning_rate=1e-5), student, fused=True)
        shards = TokenShards.open(Path(arguments.shards))
        self.batch = next(iter(Batches(shards, 0, arguments.batch, separate=True).at(0, arguments.batch)))
        self.teacher = OnlineTeacher(load_teacher("smollm2-135m").folder, dtype)
        self.store = LogitStore.open(Path(arguments.store)) if arguments.store else None
        self.precision = arguments.precision

    def _step(self, signal: Callable[[], object] | None) -> None:
        batch = self.batch
        inputs = {"ids": batch.ids, "positions": batch.positions, "weights": batch.weights}
        if signal is not None:
            inputs |= {"signal": signal(), "kd_weight": 0.7}
        with autocast(self.precision, CPU) if self.precision != "fp32" else contextlib.nullcontext():
            loss = self.module(**inputs)[0]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def plain(self) -> None:
        """On the text alone."""
        self._step(None)

    def teacher_forward(self) -> None:
        """The teacher's forward pass with its logits, a slice of the batch at a time."""
        signal = self.teacher.signal(self.batch.ids, self.batch.positions)
        with torch.no_grad():
            for rows in signal.hidden.split(256):
                torch.nn.functional.linear(rows, signal.head)

    def full(self) -> None:
        """With the teacher in the loop."""
        self._step(lambda: self.teacher.signal(self.batch.ids, self.batch.positions))

    def stored(self) -> None:
        """From a logit store."""
        assert self.store is not None
        self._step(lambda: self.store.signal(self.batch.indices))


def peak_mib(arguments: argparse.Namespace, kind: str) -> float:
    """Peak resident memory of a fresh process that takes three steps of a kind."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("student")
    parser.add_argument("--shards", required=True)
    parser.add_argument("--store")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only")
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cpus())
    steps = Steps(arguments)
    if arguments.only:
        for _ in range(3):
            getattr(steps, arguments.only)()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    kinds = ["plain", "teacher_forward", "full", *(["stored"] if arguments.store else [])]
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    products: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds + 1):
        for kind in kinds:
            start = time.perf_counter()
            getattr(steps, kind)()
            seconds[kind].append(time.perf_counter() - start)
            with Products() as counted:
                getattr(steps, kind)()
            products[kind].append(counted.seconds)
    median = {kind: statistics.median(values[1:]) for kind, values in seconds.items()}
    best = {kind: min(values[1:]) for kind, values in seconds.items()}
    print(f"{arguments.precision}, {steps.batch.ids.numel()} tokens")
    for kind in kinds:
        own = statistics.median(products[kind][1:])
        ratio = statistics.median(a / b for a, b in zip(seconds[kind][1:], products[kind][1:], strict=True))
        print(f"{kind:16} median {median[kind]:.3f} s, best {best[kind]:.3f}, {ratio:.2f} x its products' {own:.2f} s")
    for name, values in (("median", median), ("best", best)):
        both = values["plain"] + values["teacher_forward"]
        print(f"full / (plain + teacher's forward), {name}: {values['full'] / both:.3f}")
        if arguments.store:
            print(f"stored / plain, {name}: {values['stored'] / values['plain']:.3f}")
    peaks = {kind: peak_mib(arguments, kind) for kind in ("plain", "full")}
    teacher = sum(value.numel() * value.element_size() for value in steps.teacher.model.parameters()) / 2**20
    print(f"peak memory, MiB: plain {peaks['plain']:.0f}, full {peaks['full']:.0f}, teacher's weights {teacher:.0f}")
    print(f"full / (plain + teacher's weights): {peaks['full'] / (peaks['plain'] + teacher):.3f}")


if __name__ == "__main__":
    main()
