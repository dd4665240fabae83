"""Step time of every engine with two workers, against the same model in a plain DDP loop.

    python benchmarks/engine.py [--steps 10] [--rounds 5] [--workers 2] [--layers 8] [--hidden 320]

Every engine trains its own copy of one random Llama in the same processes; their steps take turns, so that a busy
machine slows all alike. The plain loop is Hugging Face's model with its own loss, DistributedDataParallel and AdamW.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from common import machine_line

from slm_ray.pretrain.components import OptimizerConfig
from slm_ray.pretrain.engine import EngineSettings, TorchEngine
from slm_ray.pretrain.module import StudentLoss
from slm_ray.pretrain.optimizers import build_optimizer
from slm_ray.pretrain.process_group import local_group

CPU = torch.device("cpu")
Step = Callable[[], None]


def make_model(arguments: argparse.Namespace) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary, hidden_size=arguments.hidden, num_hidden_layers=arguments.layers,
        num_attention_heads=5, num_key_value_heads=5, intermediate_size=3 * arguments.hidden,
        max_position_embeddings=arguments.length, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def plain_step(model: Any, ids: torch.Tensor, world: int) -> Step:
    """The loop that everyone would write."""
    wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def engine_step(name: str, model: Any, ids: torch.Tensor, rank: int, world: int) -> Step:
    """A step of one of our engines: ``torch`` or ``zero 0`` to ``zero 3``."""
    settings = EngineSettings(
        precision="fp32", clip=1.0, micro_batch=len(ids), accumulation=1, offload=False, device=CPU, rank=rank,
        world=world, zero=int(name[-1]) if name.startswith("zero") else 0,
    )  # fmt: skip
    module = StudentLoss(model, None, torch.float32)
    optimizer = build_optimizer(OptimizerConfig(learning_rate=1e-4), model, fused=True)
    if name == "torch":
        engine: Any = TorchEngine(module, optimizer, settings)
    else:
        from slm_ray.pretrain.zero import DeepSpeedEngine

        engine = DeepSpeedEngine(module, optimizer, settings)
    weights = torch.full((ids[:, 1:].numel(),), 1 / ids[:, 1:].numel())

    def step() -> None:
        engine.backward({"ids": ids, "positions": None, "weights": weights})
        engine.step(1.0)

    return step


def measure(arguments: argparse.Namespace) -> None:
    from slm_ray.pretrain.zero import prepare_deepspeed

    torch.set_num_threads(1)
    prepare_deepspeed("cpu")
    with local_group("cpu") as place:
        model = make_model(arguments)
        share = arguments.batch // place.world
        generator = torch.Generator().manual_seed(place.rank)
        ids = torch.randint(0, arguments.vocabulary, (share, arguments.length), generator=generator)
        steps = {"plain DDP": plain_step(copy.deepcopy(model), ids, place.world)}
        for name in ("torch", "zero 0", "zero 1", "zero 2", "zero 3"):
            steps[name] = engine_step(name, copy.deepcopy(model), ids, place.rank, place.world)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step(), step()
        for _ in range(arguments.rounds * arguments.steps):
            for name, step in steps.items():
                dist.barrier()
                start = time.perf_counter()
                step()
                dist.barrier()
                seconds[name].append(time.perf_counter() - start)
        if place.rank == 0:
            report(arguments, sum(parameter.numel() for parameter in model.parameters()), seconds)


def report(arguments: argparse.Namespace, parameters: int, seconds: dict[str, list[float]]) -> None:
    print(machine_line())
    size = f"{arguments.batch} x {arguments.length} tokens"
    print(f"{parameters / 1e6:.1f}M parameters, {arguments.workers} workers of one thread, {size}, fp32")
    plain = seconds["plain DDP"]
    print(f"{'':10} {'step, s':>8} {'fastest':>8} {'rate against plain DDP':>24}")
    for name, values in seconds.items():
        ratios = [one / other for one, other in zip(plain, values, strict=True)]  # of steps that took turns
        print(f"{name:10} {statistics.median(values):8.3f} {min(values):8.3f} {statistics.median(ratios):24.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("workers", 2), ("batch", 8), ("length", 256), ("vocabulary", 4096), ("hidden", 320), ("layers", 8),
        ("steps", 10), ("rounds", 5),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    if "RANK" in os.environ or arguments.workers == 1:
        measure(arguments)
        return
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.workers}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *torchrun, __file__, *sys.argv[1:]], check=True, env=environment)


if __name__ == "__main__":
    main()
