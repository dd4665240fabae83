"""Forward pass of sub-networks against the time their matrix multiplications alone would take.

python benchmarks/forward.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import gemm_rate, machine_line

from slm_ray.models.runner import SubnetRunner
from slm_ray.models.teachers import load_teacher
from slm_ray.records.cost import flops_per_token
from slm_ray.records.subnet import LayerUnits, SubnetSpec, full_subnet

ROUNDS = 5


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    teacher = load_teacher("smollm2-135m")
    architecture, full = teacher.architecture(), full_subnet(teacher.architecture())
    rng = np.random.default_rng(0)
    half = [tuple(sorted(rng.choice(1536, size=768, replace=False).tolist())) for _ in full.layers]
    layers = tuple(LayerUnits(u.source, u.kv_heads, u.query_heads, n) for u, n in zip(full.layers, half, strict=True))
    specs = {"teacher": full, "half of the neurons": SubnetSpec(full.hidden, layers)}
    ids = torch.randint(0, architecture.structure.vocab_size, (4, 512))
    print(f"{machine_line()}; one thread, medians of {ROUNDS} interleaved rounds, head and loss included\n")
    print("| type | model | sequences | s | GEMM rate, GFLOP/s | bound, s | ratio |\n|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        runner = SubnetRunner(teacher.state_as(dtype), teacher.config(), teacher.family())
        for name, spec in specs.items():
            for batch in (1, 4):
                runner.token_losses(spec, ids[:batch])
                seconds, rates = [], []
                for _ in range(ROUNDS):
                    rates.append(gemm_rate(dtype))
                    start = time.perf_counter()
                    runner.token_losses(spec, ids[:batch])
                    seconds.append(time.perf_counter() - start)
                taken, rate = float(np.median(seconds)), float(np.median(rates))
                flops = flops_per_token(spec.architecture_in(architecture), 512) * batch * 512
                cells = (str(dtype)[6:], name, batch, f"{taken:.3f}", f"{rate / 1e9:.0f}", f"{flops / rate:.3f}")
                print("| " + " | ".join(map(str, cells)) + f" | {taken / (flops / rate):.2f} |")


if __name__ == "__main__":
    main()
