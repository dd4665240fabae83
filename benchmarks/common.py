"""What the benchmarks share: the machine's line, GEMM rates, and a finished run's candidates."""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path
from typing import Any

import torch

from slm_ray.records.search import SearchResult, Trial
from slm_ray.runtime.environment import describe_environment
from slm_ray.runtime.progress import Console, Progress
from slm_ray.search.candidates import FinishedSearch
from slm_ray.search.config import SearchConfig
from slm_ray.search.inputs import SearchInputs, prepare_inputs, with_fit_text
from slm_ray.search.stack import GenomeStack
from slm_ray.search.unit_scores import bind_genomes, rank_units


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


def load_result(run: Path) -> tuple[SearchConfig, SearchResult, tuple[Trial, ...]]:
    """Options, result and trials of a finished run."""
    search = FinishedSearch.open(run)
    return search.config, search.result, search.trials


def load_stack(config: SearchConfig, workers: int = 0) -> tuple[SearchInputs, GenomeStack]:
    """What a search starts from, and what its genes stand for; unit scores come from the cache where they are."""
    console = Console()
    inputs = with_fit_text(config, prepare_inputs(config, console), console)
    ranking = rank_units(config, inputs, Progress(console, "importance", config.scores.importance_steps), workers)
    return inputs, bind_genomes(config, inputs, ranking)


def as_ids(packed: Any) -> torch.Tensor:
    """``[sequences, length]`` token ids."""
    return torch.from_numpy(packed.ids.copy()).long()
