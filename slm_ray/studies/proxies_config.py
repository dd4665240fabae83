"""The options of a report on proxies."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from slm_ray.config.base import Config, Count, Names, option
from slm_ray.config.errors import unknown_name
from slm_ray.records.budget import QUANTITIES
from slm_ray.runtime.storage import STORAGE_HELP
from slm_ray.search.candidates import FEWEST_CANDIDATES
from slm_ray.search.config import SHORT_LEARNING_RATE, short_batch_size
from slm_ray.search.registry import PROXIES

DEFAULT_PROXIES = (*PROXIES, "params")


class ProxiesConfig(Config):
    """Everything that a report on proxies depends on, and where it is put."""

    run: str | None = option(None, "folder of a finished search")
    tokens: Count = option(20_000, "tokens to train each candidate on, e.g. 20k or 1M", ge=1)
    candidates: int = option(12, "candidates to train", ge=FEWEST_CANDIDATES)
    proxies: Names = option(DEFAULT_PROXIES, "proxies and costs to correlate, with commas")
    seed: int = option(0, "seed of the choice, the training and the resampling", ge=0)
    distill: Literal["none", "full"] = option("full", "the teacher's signal in training")
    learning_rate: float = option(SHORT_LEARNING_RATE, "peak learning rate of the training", gt=0)
    batch_size: int | None = option(None, "sequences of a step [default: 8, or fewer for 32 steps]", ge=1)
    eval_tokens: Count = option(8192, "held-out tokens that the loss is measured on", ge=1)
    engine: Literal["deepspeed", "torch"] = option("deepspeed", "what runs the training's steps")
    threads: int | None = option(None, "CPU threads of each training [default: shared out]", ge=1)
    concurrent: int | None = option(None, "candidates at once [default: as many as fit]", ge=1)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto trains on GPUs where there are any")
    storage: str | None = option(None, STORAGE_HELP)
    address: str | None = option(None, "Ray cluster to join, e.g. auto [default: start one here]")
    out: str | None = option(None, "folder of the report [default: runs/proxies-TIME]")

    @field_validator("proxies")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in PROXIES and name not in QUANTITIES:
                raise ValueError(str(unknown_name("proxy", name, [*PROXIES, *QUANTITIES])))
        if not names:
            raise ValueError("names none: give some of " + ", ".join(DEFAULT_PROXIES))
        return names

    @property
    def measured(self) -> tuple[str, ...]:
        """The proxies, without costs, which need no measuring."""
        return tuple(name for name in self.proxies if name in PROXIES)

    def sequences_of_a_step(self, sequence_length: int) -> int:
        """Sequences of an optimiser step."""
        return self.batch_size or short_batch_size(self.tokens, sequence_length)
