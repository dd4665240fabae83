"""Memory of k concurrent trials on a node, over the teacher they share: peak private memory per worker.

Every worker maps the teacher and measures candidates. What it holds for itself (pages that are not the file's) is
sampled during the measurement and compared with a process that has imported the same modules and no more.

python benchmarks/memory.py [--workers 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from common import machine_line

LIMIT_SHARE = 0.15


def rollup() -> dict[str, int]:
    """This process's memory by kind, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def measure(precision: str, queue: Any) -> None:
    """Measure candidates in a fresh process and report its private memory."""
    from slm_ray.models.teachers import load_teacher
    from slm_ray.records.subnet import LayerUnits, SubnetSpec
    from slm_ray.search.evaluator import Evaluator, EvaluatorSettings

    teacher = load_teacher("smollm2-135m")
    from slm_ray.records.subnet import full_subnet

    full = full_subnet(teacher.architecture())
    rng = np.random.default_rng(os.getpid())
    teacher.family()
    before = rollup()["Anonymous"]
    peak, ended = [before], threading.Event()

    def sample() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], rollup()["Anonymous"])

    watcher = threading.Thread(target=sample)
    watcher.start()
    ids = rng.integers(0, 49152, size=(16, 512), dtype=np.int32)
    settings = EvaluatorSettings(teacher, precision, ids)
    evaluator = Evaluator(settings)
    for _ in range(2):
        layers = tuple(
            LayerUnits(
                u.source, u.kv_heads, u.query_heads, tuple(sorted(rng.choice(1536, 1024, replace=False).tolist()))
            )
            for u in full.layers
        )
        evaluator.evaluate(SubnetSpec(full.hidden, layers))
    ended.set()
    watcher.join()
    pss = rollup()
    queue.put((before, peak[0], pss["Pss"] - pss["Anonymous"]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    from slm_ray.models.teachers import load_teacher
    from slm_ray.runtime.session import _KEEP_MEMORY

    os.environ.update(_KEEP_MEMORY)
    teacher = load_teacher("smollm2-135m")
    print(f"{machine_line()}; {workers} workers, 16x512 tokens, teacher {teacher.name}\n")
    print(
        "| type | teacher, MiB | worker's own at its peak, MiB | share of the teacher | limit |\n|---|---|---|---|---|"
    )
    context = multiprocessing.get_context("spawn")
    for precision in ("fp32", "bf16"):
        queue = context.Queue()
        processes = [context.Process(target=measure, args=(precision, queue)) for _ in range(workers)]
        for process in processes:
            process.start()
        found = [queue.get() for _ in processes]
        for process in processes:
            process.join()
        size = sum(tensor.numel() for tensor in teacher.state().values()) * (4 if precision == "fp32" else 2)
        own = max(peak - before for before, peak, _ in found)
        print(f"| {precision} | {size / 2**20:.0f} | {own / 2**20:.0f} | {own / size:.1%} | {LIMIT_SHARE:.0%} |")


if __name__ == "__main__":
    main()
