"""The single figures of a model at work: a prefill's, a decoding step's, its memory, its energy."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
from dataclasses import dataclass
from typing import Any

from slm_ray.evaluate.forward_flops import reading_flops
from slm_ray.evaluate.serving import Serving
from slm_ray.runtime.energy import EnergyMeter
from slm_ray.runtime.hardware import Effort, PeakMemory, distribution_ms

_MEMORY_STEPS, _WARM_TOKENS = 4, 8
_STEPS_PER_RUN = 5  # a step is short: so many times the runs of a prefill


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measures one model.

    Attributes:
        serving: The model.
        most_steps: Tokens that are said after a context before it is read anew.
        effort: How much is spent on a figure.
    """

    serving: Serving
    most_steps: int
    effort: Effort

    def prefill(self, length: int, batch: int) -> dict[str, Any]:
        """Reading a batch of prompts: latencies, and rates at the median one."""
        times = self.serving.time_reading(batch, length, self.effort)
        latency, ids = distribution_ms(times), self.serving.prompt(batch, length)
        flops = reading_flops(self.serving.model, ids, last_only=self.serving.last_logits_only)
        return {
            "prompt_tokens": length, "batch": batch, "tokens_per_second": 1e3 * batch * length / latency["median"],
            "flops_per_second": 1e3 * flops / latency["median"], "latency_ms": latency, "runs": len(times),
        }  # fmt: skip

    def decode(self, length: int, batch: int) -> dict[str, Any]:
        """Steps after a context: latencies of one token for each text, and the rate at the median one."""
        effort = dataclasses.replace(self.effort, least_runs=_STEPS_PER_RUN * self.effort.least_runs)
        times = self.serving.time_steps(batch, length, self.most_steps, effort)
        latency = distribution_ms(times)
        return {
            "context_tokens": length, "batch": batch, "tokens_per_second": 1e3 * batch / latency["median"],
            "latency_ms": latency, "runs": len(times),
        }  # fmt: skip

    def memory(self, length: int, batch: int) -> dict[str, Any]:
        """The most memory that reading a batch and saying a few tokens needs, above what is held before.

        To be measured before anything else of its kind has run, so that no memory kept from that is used again unseen.
        """
        serving, ids = self.serving, self.serving.prompt(batch, length)
        serving.touch_weights()
        serving.read(serving.prompt(1, min(_WARM_TOKENS, length)))  # what is set up once is no prompt's
        _release_free_memory()
        with PeakMemory(serving.device) as peak:
            at = serving.read(ids)
            for _ in range(min(_MEMORY_STEPS, self.most_steps) if at.cache is not None else 0):
                at = serving.step(at)
        return {"above_weights_bytes": peak.bytes, "prompt_tokens": length, "batch": batch, "source": peak.source}

    def energy(self, length: int, batch: int) -> dict[str, Any]:
        """Joules per token of decoding, of the whole machine while it does so; None where nothing measures them."""
        meter = EnergyMeter(processor=True)
        if not meter.can_measure:
            return {"joules_per_token": None, "source": meter.stop().source}
        meter.start()
        times = self.serving.time_steps(batch, length, self.most_steps, self.effort)
        used = meter.stop()
        per_token = None if used.joules is None else used.joules / (batch * len(times))
        of = f"decoding {batch} texts at once after {length} tokens, with the reading of these"
        return {"joules_per_token": per_token, "source": used.source, "of": of}


def _release_free_memory() -> None:
    """Give what is free back to the system, so that it is not taken anew without being seen."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
