"""The losses of a step from final hidden states, forward and backward: time and memory, with and without a teacher.

All ways are interleaved; medians. The bound is the matrix multiplications alone at the rate measured beside it: three
for the student, one more for the teacher's logits. Memory is the greatest resident size less that before, in a fresh
process.

python benchmarks/distill_loss.py [--precision fp32 bf16] [--tokens 2048] [--rounds 7]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine_line
from torch.nn import functional

from slm_ray.distill.divergences import Divergence
from slm_ray.distill.losses import causal_lm_loss
from slm_ray.distill.signal import DenseSignal, SparseSignal

VOCABULARY, HIDDEN, K = 49152, 576, 32
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAIN, OURS, TEACHER = "cross_entropy on whole logits", "ours, CE", "teacher's logits"
FULL = "ours, CE + full forward KL"


def make_ways(precision: str, num_tokens: int) -> dict[str, Callable[[], Any]]:
    """Every way, on the same inputs."""
    torch.manual_seed(0)
    dtype = TYPES[precision]
    hidden = torch.randn(num_tokens, HIDDEN, dtype=dtype).requires_grad_()
    head = (0.05 * torch.randn(VOCABULARY, HIDDEN)).to(dtype).requires_grad_()
    teacher = torch.randn(num_tokens, HIDDEN, dtype=dtype)
    teacher_head = (0.05 * torch.randn(VOCABULARY, HIDDEN)).to(dtype)
    targets = torch.randint(VOCABULARY, (num_tokens,))
    weights = torch.full((num_tokens,), 1 / num_tokens)
    ids = torch.rand(num_tokens, 64).argsort(-1)[:, :K] * (VOCABULARY // 64)
    log_probs = torch.randn(num_tokens, K + 1).log_softmax(-1)
    signals = {
        FULL: DenseSignal(teacher, teacher_head),
        f"ours, CE + top-{K}": SparseSignal("top-k", ids, log_probs[:, :K]),
        f"ours, CE + top-{K} + tail": SparseSignal("top-k-tail", ids, log_probs[:, :K], log_probs[:, K]),
    }

    def plain() -> None:
        functional.cross_entropy(functional.linear(hidden, head).float(), targets).backward()

    def ours(signal: Any, divergence: Divergence | None) -> None:
        causal_lm_loss(
            hidden, head, targets, weights, kd_weight=0.0 if signal is None else 0.7, signal=signal,
            divergence=divergence,
        ).loss.backward()  # fmt: skip

    def teacher_logits() -> None:
        for rows in range(0, num_tokens, 512):
            functional.linear(teacher[rows : rows + 512], teacher_head)

    def with_fresh_gradients(way: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        def run() -> None:
            hidden.grad = head.grad = None
            way(*arguments)

        return run

    ways = {PLAIN: with_fresh_gradients(plain), OURS: with_fresh_gradients(ours, None, None), TEACHER: teacher_logits}
    for name, signal in signals.items():
        ways[name] = with_fresh_gradients(ours, signal, Divergence())
    ways["ours, CE + full, temperature 2"] = with_fresh_gradients(ours, signals[FULL], Divergence(temperature=2.0))
    ways["ours, CE + full Jensen-Shannon"] = with_fresh_gradients(
        ours, signals[FULL], Divergence(name="jensen_shannon")
    )
    return ways


def median_seconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Interleaved: every round runs every way once."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(found)) for name, found in seconds.items()}


def resident(field: str) -> int:
    """A memory field of this process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


def peak_memory(precision: str, num_tokens: int, name: str, queue: Any) -> None:
    """Run one way in this fresh process and report what it added to the resident size at its peak."""
    ways = make_ways(precision, num_tokens)
    make_ways(precision, 8)[OURS]()  # libraries and their threads are there before
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    ways[name]()
    queue.put(resident("VmHWM") - before)


def main() -> None:
    """Print one table for each type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"{machine_line()}; {arguments.tokens} tokens, vocabulary {VOCABULARY:,}, hidden {HIDDEN}")
    for precision in arguments.precision:
        ways = make_ways(precision, arguments.tokens)
        seconds = median_seconds(ways, arguments.rounds)
        bound = 3 * seconds[TEACHER]
        print(f"\n{precision}; bound of the student's multiplications {1e3 * bound:.0f} ms\n")
        print("| way | ms | x ours CE | x (ours CE + teacher's logits) | x bound | peak extra memory, MiB |")
        print("|---|---|---|---|---|---|")
        for name, found in seconds.items():
            queue = context.Queue()
            process = context.Process(target=peak_memory, args=(precision, arguments.tokens, name, queue))
            process.start()
            extra = queue.get()
            process.join()
            multiplications = bound + seconds[TEACHER] if "full" in name else bound
            ratios = [found / seconds[OURS], found / (seconds[OURS] + seconds[TEACHER]), found / multiplications]
            cells = [f"{1e3 * found:.0f}", *(f"{ratio:.2f}" for ratio in ratios), f"{extra / 2**20:.0f}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
