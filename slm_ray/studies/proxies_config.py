"""The options of the command that correlates proxies with short training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError, unknown_name
from slm_ray.config.options import at_least, option
from slm_ray.config.units import parse_number
from slm_ray.records.budget import QUANTITIES
from slm_ray.runtime.storage import STORAGE_HELP
from slm_ray.search.proxy_candidates import FEWEST_CANDIDATES
from slm_ray.search.registry import PROXIES
from slm_ray.search.trained import LEARNING_RATE, batch_size_of

DEFAULT_PROXIES = (*PROXIES, "params")


@dataclass(frozen=True, kw_only=True)
class ProxiesConfig:
    """Everything that a report on proxies depends on, and where it is put."""

    run: str = option(None, "folder of a finished search", kind=str)
    tokens: str = option("20k", "tokens to train each candidate on, e.g. 20k or 1M", metavar="COUNT")
    candidates: int = option(12, "candidates to train", check=at_least(FEWEST_CANDIDATES))
    proxies: str = option(",".join(DEFAULT_PROXIES), "proxies and costs to correlate, with commas")
    seed: int = option(0, "seed of the choice, the training and the resampling", check=at_least(0))
    distill: str = option("full", "the teacher's signal in training", choices=("none", "full"))
    learning_rate: float = option(LEARNING_RATE, "peak learning rate of the training", check=at_least(1e-12))
    batch_size: int = option(None, "sequences of a step [default: 8, or as give 32 steps]", check=at_least(1), kind=int)
    eval_tokens: int = option(8192, "held-out tokens that the loss is measured on", check=at_least(1))
    engine: str = option("deepspeed", "what runs the training's steps", choices=("deepspeed", "torch"))
    threads: int = option(None, "CPU threads of each training [default: shared out]", check=at_least(1), kind=int)
    concurrent: int = option(None, "candidates at once [default: as many as fit]", check=at_least(1), kind=int)
    device: str = option("auto", "auto trains on GPUs where there are any", choices=("auto", "cpu", "cuda"))
    storage: str = option(None, STORAGE_HELP, kind=str)
    address: str = option(None, "Ray cluster to join, e.g. auto [default: start one here]", kind=str)
    out: str = option(None, "folder of the report [default: runs/proxies-TIME]", kind=str)

    def names(self) -> tuple[str, ...]:
        """The proxies and costs.

        Raises:
            UserError: A name is unknown (the nearest is offered), or there is none.
        """
        names = tuple(dict.fromkeys(part.strip() for part in self.proxies.split(",") if part.strip()))
        for name in names:
            if name not in PROXIES and name not in QUANTITIES:
                raise unknown_name("proxy", name, [*PROXIES, *QUANTITIES])
        if not names:
            raise UserError("--proxies names none: give some of " + ", ".join(DEFAULT_PROXIES))
        return names

    def sequences_of_a_step(self, sequence_length: int) -> int:
        """Sequences of an optimiser step.

        Raises:
            UserError: The budget is below one step.
        """
        tokens = parse_number(self.tokens)
        batch = self.batch_size or batch_size_of(tokens, sequence_length)
        if tokens < batch * sequence_length:
            raise UserError(
                f"--tokens {self.tokens} is below one step of {batch * sequence_length:,} tokens: give more, or a "
                "smaller --batch-size"
            )
        return batch

    def check(self) -> None:
        """Check everything that needs no files.

        Raises:
            UserError: Something is missing or wrong.
        """
        if not self.run:
            raise UserError("--run is missing: give the folder of a finished search")
        self.names()
        parse_number(self.tokens)

    def to_json(self) -> dict[str, Any]:
        """The options as config.json holds them."""
        return dataclasses.asdict(self)


def default_out(stamp: str) -> Path:
    """The folder when none is given: ``runs/proxies-STAMP``."""
    return Path("runs") / f"proxies-{stamp}"
