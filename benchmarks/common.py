"""What the benchmarks share: the machine's line, GEMM rates, and a finished run's candidates."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import torch

from slm_ray.runtime.environment import describe_environment
from slm_ray.search.config import SearchConfig


def machine_line() -> str:
    """Processor, CPUs, versions and date, for the head of a table."""
    found = describe_environment().to_json()
    versions = found["packages"]
    day = datetime.date.today().isoformat()
    return f"{found['cpu']}, {found['cpus']} CPUs, torch {versions['torch']}, ray {versions['ray']}, {day}"


def gemm_rate(dtype: torch.dtype, rows: int = 512, repeats: int = 60) -> float:
    """FLOP/s of this machine's matrix multiply at a small model's MLP shape, at the current number of threads."""
    a, b = torch.randn(rows, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
    for _ in range(5):
        torch.nn.functional.linear(a, b)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.nn.functional.linear(a, b)
    return 2 * rows * 576 * 1536 * repeats / (time.perf_counter() - start)


def run_argument(description: str) -> Any:
    """A parser with the one argument most benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help="folder of a finished search")
    return parser


def load_result(run: Path) -> tuple[SearchConfig, dict[str, Any], list[dict[str, Any]]]:
    """Options, result and trials of a finished run."""
    fields = json.loads((run / "config.json").read_text())
    fields.pop("command", None)
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    return SearchConfig(**fields), json.loads((run / "result.json").read_text()), trials


def as_ids(packed: Any) -> torch.Tensor:
    """``[sequences, length]`` token ids."""
    return torch.from_numpy(packed.ids.copy()).long()
